//! What goes wrong in one run, and when.

use super::dice::Dice;
use crate::role::moment::MILLISECOND;
use crate::role::timing::Timing;

/// Which of the two hosts.
pub(super) type Host = usize;

/// One thing that goes wrong, or that an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL: the process is gone, the kernel closes its channel.
    Kill(usize),
    /// The host is gone, without a word.
    PowerLoss(usize),
    /// SIGSTOP, and SIGCONT so many nanoseconds later.
    Freeze(usize, u64),
    /// Nothing gets through for so long; TCP repeats it later.
    Partition(u64),
    /// No datagram gets through for so long.
    DatagramsLost(u64),
    /// The log channel breaks; true: this host learns of it.
    Cut([bool; 2]),
    /// The arbiter answers this host again only so much later.
    ArbiterAway(usize, u64),
    /// The backup executes slowly for so long.
    SlowBackup(u64),
    /// The operator asks this side to hand over.
    HandOver(usize),
    /// The operator ends this side.
    Leave(usize),
    /// The backup's next entry is executed wrongly, and that is noticed.
    Diverge,
    /// The guest switches itself off.
    GuestEnds,
    /// A host whose process is gone starts it again as the first primary it once was.
    StartAgain(usize),
    /// A host whose process is gone starts it again as a backup.
    ComeBack(usize),
}

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing goes wrong.
    Calm,
    /// The primary is killed, and nothing else: time is measured.
    Killed,
    /// The primary hands over, and nothing else.
    HandedOver,
    /// The primary freezes for longer than the silence bound.
    Frozen,
    /// The primary stands still for less than the silence bound, and meanwhile its channel breaks for the
    /// backup.
    Squeezed,
    /// The backup is killed, comes back, and later the primary is killed.
    Rejoined,
    /// Up to four faults of any kind.
    Anything,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) seed: u64,
    /// What it is about.
    pub scenario: Scenario,
    /// When, in nanoseconds, and what.
    pub faults: Vec<(u64, Fault)>,
    pub(super) timing: Timing,
    /// Clock offset in nanoseconds and rate error in parts per million, by host.
    pub(super) clocks: [(u64, i64); 2],
    /// Lost datagrams, in thousandths.
    pub(super) loss: u64,
    /// Datagrams that come up to 30 ms late, in thousandths.
    pub(super) late: u64,
    /// Least and most time on the way.
    pub(super) delay: (u64, u64),
    /// Time that the arbiter takes at most.
    pub(super) arbiter: u64,
    /// Outputs that may wait.
    pub(super) capacity: usize,
    /// The primary waits for its backup before it starts the guest.
    pub(super) alone: bool,
}

/// Faults happen until then; after that the world heals.
pub(super) const HEALED: u64 = 400 * MILLISECOND;

/// The end of a run.
pub(super) const END: u64 = 1_200 * MILLISECOND;

impl Plan {
    /// Draws a plan.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let scenario = match dice.between(0, 19) {
            0 => Scenario::Calm,
            1 | 2 => Scenario::Killed,
            3 => Scenario::HandedOver,
            4 | 5 => Scenario::Frozen,
            6 => Scenario::Squeezed,
            7 => Scenario::Rejoined,
            _ => Scenario::Anything,
        };
        let when = |dice: &mut Dice| dice.between(60 * MILLISECOND, 300 * MILLISECOND);
        let faults = match scenario {
            Scenario::Calm => Vec::new(),
            Scenario::Killed => vec![(when(&mut dice), Fault::Kill(0))],
            Scenario::HandedOver => vec![(when(&mut dice), Fault::HandOver(dice.pick(&[0, 1])))],
            Scenario::Frozen => {
                vec![(when(&mut dice), Fault::Freeze(0, dice.between(40 * MILLISECOND, 200 * MILLISECOND)))]
            }
            Scenario::Squeezed => {
                let at = when(&mut dice);
                let stands = dice.between(20 * MILLISECOND, 48 * MILLISECOND);
                let cut = at + dice.between(0, 3 * MILLISECOND);
                vec![(at, Fault::Freeze(0, stands)), (cut, Fault::Cut([false, true]))]
            }
            Scenario::Rejoined => {
                let at = dice.between(60 * MILLISECOND, 100 * MILLISECOND);
                let back = at + dice.between(10 * MILLISECOND, 40 * MILLISECOND);
                vec![
                    (at, Fault::Kill(1)),
                    (back, Fault::ComeBack(1)),
                    (at + 200 * MILLISECOND, Fault::Kill(0)),
                ]
            }
            Scenario::Anything => {
                let count = dice.between(1, 4);
                // Faults close to each other meet more often.
                let centre = when(&mut dice);
                let spread = dice.pick(&[MILLISECOND, 20 * MILLISECOND, 60 * MILLISECOND]);
                (0..count).map(|_| (centre + dice.between(0, spread), any_fault(&mut dice))).collect()
            }
        };
        let rough = scenario == Scenario::Anything;
        let timing = Timing {
            claim_retry: 20 * MILLISECOND,
            ack_patience: 250 * MILLISECOND,
            hand_over_patience: 150 * MILLISECOND,
            lag_bound: 20 * MILLISECOND,
            ..if rough { dice.pick(&TIMINGS)() } else { Timing::default() }
        };
        Self {
            seed,
            scenario,
            faults,
            timing,
            clocks: [0, 1].map(|_| (dice.between(0, 1 << 40), dice.between(0, 10_000) as i64 - 5_000)),
            loss: if rough { dice.pick(&[0, 10, 100, 300]) } else { 10 },
            late: if scenario == Scenario::Rejoined { 400 } else { 20 },
            delay: match scenario {
                Scenario::Anything => (20_000, dice.pick(&[100_000, 2_000_000, 12_000_000])),
                // Acks are on their way at any moment.
                Scenario::Squeezed => (20_000, 3_000_000),
                _ => (20_000, 300_000),
            },
            arbiter: match scenario {
                Scenario::Anything => dice.pick(&[1, 10, 40]) * MILLISECOND,
                Scenario::Squeezed => 2 * MILLISECOND,
                _ => 8 * MILLISECOND,
            },
            capacity: dice.pick(&[4, 64]),
            alone: rough && dice.permille(100),
        }
    }
}

/// The sets of times that are tried.
const TIMINGS: [fn() -> Timing; 4] = [
    Timing::default,
    Timing::default,
    || Timing { heartbeat: 5 * MILLISECOND, missed: 3, margin_permille: 200, early: 1, ..Timing::default() },
    || Timing { heartbeat: 20 * MILLISECOND, missed: 4, margin_permille: 50, early: 3, ..Timing::default() },
];

fn any_fault(dice: &mut Dice) -> Fault {
    let host = dice.pick(&[0, 1]);
    let time = dice.between(MILLISECOND, 120 * MILLISECOND);
    match dice.between(0, 17) {
        0 | 1 => Fault::Kill(host),
        2 => Fault::PowerLoss(host),
        3..=5 => Fault::Freeze(host, time),
        6 => Fault::Partition(time),
        7 => Fault::DatagramsLost(time),
        8 => Fault::Cut(dice.pick(&[[true, true], [true, false], [false, true], [false, false]])),
        9 | 10 => Fault::ArbiterAway(host, time),
        11 => Fault::SlowBackup(time),
        12 => Fault::HandOver(host),
        13 => Fault::Leave(host),
        14 => Fault::Diverge,
        15 => Fault::GuestEnds,
        16 => Fault::StartAgain(host),
        _ => Fault::ComeBack(host),
    }
}
