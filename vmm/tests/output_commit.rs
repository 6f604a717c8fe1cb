//! The rule by which an output leaves without a log entry of its own, against a machine for which every input
//! and every stop matters: whatever has left, a backup that takes over makes again, whatever it is tempted by.

use proptest::prelude::*;
use tandem_vmm::replay::output_commit::{Debt, PATIENCE, STRETCH, may_rely};

/// A machine whose outputs depend on everything that ever happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Toy {
    state: u64,
    point: u64,
}

/// How the guest gets from one point to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stretch {
    /// To an exit that puts something out.
    Output,
    /// To an exit that does not.
    Silent,
    /// To an idle wait, which only an input ends.
    Idle,
    /// So many kicks without an exit, then an exit that puts something out.
    Computes(u32),
}

fn mix(a: u64, b: u64) -> u64 {
    (a ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

impl Toy {
    const fn new(seed: u64) -> Self {
        Self { state: seed, point: 0 }
    }

    /// What the guest does next is its own state's doing.
    const fn next(self) -> Stretch {
        match self.state >> 33 & 31 {
            0..=11 => Stretch::Output,
            12..=26 => Stretch::Silent,
            27..=29 => Stretch::Idle,
            _ => Stretch::Computes((self.state >> 40 & 7) as u32),
        }
    }

    fn reach(&mut self) {
        self.point += 1;
        self.state = mix(self.state, self.point);
    }

    fn apply(&mut self, input: u64) {
        self.state = mix(self.state, input | 1);
    }

    fn output(self) -> u64 {
        mix(self.state, 0xfeed)
    }
}

/// A logged input.
#[derive(Clone, Copy, Debug)]
struct Entry {
    point: u64,
    input: u64,
    /// A forced stop, in place of the exit.
    stop: bool,
}

/// A frame of the log: inputs with their points, all up to the horizon.
#[derive(Clone, Debug, Default)]
struct Frame {
    inputs: Vec<Entry>,
    horizon: u64,
}

struct Recorded {
    frames: Vec<Frame>,
    /// Outputs in their order, each with the number of frames it waits for.
    outputs: Vec<(usize, u64)>,
}

/// Runs the primary. `choices` decide when inputs come, when batches are sent, and when a computing guest is
/// stopped by force (an input of the log like any other).
fn record(seed: u64, choices: &[u8]) -> Recorded {
    let mut toy = Toy::new(seed);
    let mut done = Recorded { frames: Vec::new(), outputs: Vec::new() };
    let mut open = Frame::default();
    let (mut base, mut kicked) = (0, false);
    for &choice in choices {
        let stretch = toy.next();
        toy.reach();
        if let Stretch::Computes(kicks) = stretch {
            kicked |= kicks >= 2;
            if choice & 0x40 != 0 && kicks >= 2 {
                let stop = mix(u64::from(choice), toy.point);
                open.inputs.push(Entry { point: toy.point, input: stop, stop: true });
                toy.apply(stop);
                continue;
            }
        }
        if choice & 3 == 0 || stretch == Stretch::Idle {
            let input = mix(u64::from(choice), 7);
            open.inputs.push(Entry { point: toy.point, input, stop: false });
            toy.apply(input);
        }
        if matches!(stretch, Stretch::Output | Stretch::Computes(_)) {
            let relies = may_rely(toy.point, base, !open.inputs.is_empty(), kicked);
            done.outputs.push((done.frames.len() + usize::from(!relies), toy.output()));
        }
        if choice & 0x0c == 0 {
            open.horizon = toy.point;
            base = toy.point;
            kicked = false;
            done.frames.push(std::mem::take(&mut open));
        }
    }
    done
}

/// Follows the frames, then takes over with inputs of its own at hand at every point, and with a wish to stop
/// the guest at every kick. All outputs, in order.
fn take_over(seed: u64, frames: &[Frame], debt: impl Fn(u64) -> Option<Debt>) -> Vec<u64> {
    let mut toy = Toy::new(seed);
    let mut outputs = Vec::new();
    let horizon = frames.last().map_or(0, |frame| frame.horizon);
    let mut inputs = frames.iter().flat_map(|frame| &frame.inputs).peekable();
    while toy.point < horizon {
        let stretch = toy.next();
        toy.reach();
        let mut stopped = false;
        while let Some(entry) = inputs.next_if(|entry| entry.point == toy.point) {
            stopped |= entry.stop;
            toy.apply(entry.input);
        }
        if matches!(stretch, Stretch::Output | Stretch::Computes(_)) && !stopped {
            outputs.push(toy.output());
        }
    }
    let mut debt = debt(horizon);
    for _ in 0..4 * STRETCH {
        let stretch = toy.next();
        toy.reach();
        let binds = debt.is_some_and(|debt| debt.binds(toy.point));
        if let Stretch::Computes(kicks) = stretch
            && (1..kicks).any(|_| debt.as_mut().is_none_or(Debt::kick))
        {
            toy.apply(0xbad);
            continue;
        }
        if stretch == Stretch::Idle {
            debt = None;
        }
        if !binds || stretch == Stretch::Idle {
            toy.apply(0xbeef);
        }
        if matches!(stretch, Stretch::Output | Stretch::Computes(_)) {
            outputs.push(toy.output());
        }
    }
    outputs
}

/// Outputs that left before the primary died with `frames` acknowledged, and what the backup makes.
fn fates(seed: u64, choices: &[u8], debt: impl Fn(u64) -> Option<Debt> + Copy) -> Vec<(Vec<u64>, Vec<u64>)> {
    let recorded = record(seed, choices);
    (0..=recorded.frames.len())
        .map(|acked| {
            let left = recorded.outputs.iter().take_while(|(waits, _)| *waits <= acked);
            let left = left.map(|(_, output)| *output).collect::<Vec<_>>();
            (left, take_over(seed, &recorded.frames[..acked], debt))
        })
        .collect()
}

fn is_lost((left, made): &(Vec<u64>, Vec<u64>)) -> bool {
    let mut made = made.iter();
    !left.iter().all(|output| made.any(|other| other == output))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_has_left_is_made_again(seed: u64, choices in proptest::collection::vec(any::<u8>(), 1..120)) {
        for fate in fates(seed, &choices, |point| Some(Debt::from(point))) {
            prop_assert!(!is_lost(&fate), "left {:x?}, made {:x?}", fate.0, fate.1);
        }
    }
}

/// The test can fail: a backup without the promise loses outputs.
#[test]
fn without_the_promise_outputs_are_lost() {
    let lost = (0..200u64)
        .filter(|seed| {
            let choices = (0..60u64).map(|i| mix(*seed, i) as u8).collect::<Vec<_>>();
            fates(*seed, &choices, |_| None).iter().any(is_lost)
        })
        .count();
    assert!(lost > 20, "only {lost} of 200 runs lose an output");
}

/// A debt is no prison: a guest that never exits is stopped in the end.
#[test]
fn a_guest_that_never_exits_is_stopped_in_the_end() {
    let mut debt = Debt::from(9);
    assert_eq!((0..).take_while(|_| !debt.kick()).count() as u32, PATIENCE - 1);
}
