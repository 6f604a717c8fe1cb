//! The output delay against the bare round trip of the same transport, in one run.
//!
//! A pair in the lab's network namespaces, primary and backup each on a core. The delay is that of every output
//! from the guest's kick until its release, by the primary's own histograms (`tandem status`). The system call that writes
//! it comes behind that, and so does the turn of those before it: an unprotected machine has both too. With one
//! client on the primary's core that call takes as long as the client, which the packet wakes: the whole, write and queue
//! included, stands beside it as `total`. The round trip is the ping-pong's over the same cable and between the same cores,
//! right before each pair. Two loads, each with pairs of its own: one client, whose every reply waits for its own
//! log, and fifty, whose replies share it.
//!
//! A turn in which this machine's own host took time away is made again: with fifty replies to a batch, one batch in two hundred that is
//! held up makes a p99.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize as Json;
use tandem_tests::bed::{Bed, Program};
use tandem_tests::config::{Guest, Pace, Spec};
use tandem_tests::lab;
use tandem_tests::median::median;
use tandem_tests::redis_benchmark::{self, Load};
use tandem_vmm::host::control::{OutputDelay, OutputStage};
use tandem_vmm::host::shutdown::Shutdown;

use super::thousandth;
use crate::pair::{RoundTrip, ping_pong};
use crate::stolen::Account;

/// Clients, and requests of each command.
const LOADS: [(u32, u64); 2] = [(1, 4_000), (50, 30_000)];

/// Per cent of the cores' time that may be stolen in a turn that counts. On an EPYC, turns of two seconds in which none of 400 ticks was
/// stolen had a p99 of 0.9 to 2.3 round trips, with two of them 2.2 to 3.4, with eight and more 5 to 15.
pub(crate) const MOST_STOLEN: f64 = 0.3;

/// How many turns are made for each that counts, at most.
const TRIES: u32 = 4;

/// A pair and its load.
#[derive(Clone, Debug, Json)]
pub(crate) struct Turn {
    /// Per cent of the cores' time.
    pub(crate) stolen: f64,
    pub(crate) over_rtt_p50: f64,
    pub(crate) over_rtt_p99: f64,
}

impl Turn {
    fn counts(&self) -> bool {
        self.stolen <= MOST_STOLEN
    }
}

/// One load. The figures are medians of the turns that count, or of all if none does.
#[derive(Debug, Default, Json)]
pub(crate) struct Row {
    pub(crate) clients: u32,
    /// All that were made.
    pub(crate) turns: Vec<Turn>,
    pub(crate) rtt_us: f64,
    pub(crate) rtt_us_p99: f64,
    pub(crate) delay_us_p50: f64,
    pub(crate) delay_us_p99: f64,
    pub(crate) total_us_p50: f64,
    pub(crate) total_us_p99: f64,
    /// Against the median round trip.
    pub(crate) over_rtt_p50: f64,
    pub(crate) over_rtt_p99: f64,
    /// The slowest of a hundred against the slowest of a hundred bare ones.
    pub(crate) p99_over_rtt_p99: f64,
    pub(crate) total_over_rtt_p50: f64,
    pub(crate) total_over_rtt_p99: f64,
    /// Of the last turn.
    pub(crate) stages: Vec<OutputStage>,
}

impl Row {
    /// Why its p99 says nothing of Tandem.
    pub(crate) fn held_up(&self) -> Option<String> {
        let least = self.turns.iter().map(|turn| turn.stolen).fold(f64::INFINITY, f64::min);
        (!self.turns.iter().any(Turn::counts)).then(|| {
            format!(
                "with {} clients this machine's host took {least:.1} % of the time or more in each of {} turns (at most {} %)",
                self.clients,
                self.turns.len(),
                MOST_STOLEN
            )
        })
    }

    /// How many turns count, and how many were made again.
    pub(crate) fn counted(&self) -> (usize, usize) {
        let count = self.turns.iter().filter(|turn| turn.counts()).count();
        (count, self.turns.len() - count)
    }
}

/// Measures, or says what is missing.
///
/// # Errors
/// A pair does not come up, or the load fails.
pub(super) fn measure(turns: u32) -> Result<Result<Vec<Row>, String>> {
    if let Some(obstacle) = lab::obstacle() {
        return Ok(Err(format!("no lab can be built here: {obstacle}")));
    }
    if !redis_benchmark::is_installed() {
        return Ok(Err("redis-benchmark is missing: install redis-tools".to_owned()));
    }
    let program = match Program::tandem() {
        Ok(program) => program,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    let spec = Spec { name: "bench".to_owned(), guest: Guest::Embedded, pace: Pace::NATIVE };
    let mut bed = Bed::new("bench-channel", program, spec, Shutdown::on_signals()?)?;
    LOADS.map(|load| row(&mut bed, load, turns, &ping_pong)).into_iter().collect::<Result<Vec<_>>>().map(Ok)
}

/// A status that was asked for is renewed within this.
const RENEWAL: Duration = Duration::from_millis(200);

/// One load: clients, and requests of each command. `bare` makes round trips between the hosts, without a pair.
///
/// # Errors
/// A pair does not come up, or the load fails.
pub(crate) fn row(
    bed: &mut Bed,
    (clients, requests): (u32, u64),
    turns: u32,
    bare: &dyn Fn(&Bed) -> Result<RoundTrip>,
) -> Result<Row> {
    let mut measured: Vec<(Turn, RoundTrip, OutputDelay)> = Vec::new();
    let counted = |measured: &[(Turn, _, _)]| measured.iter().filter(|(turn, ..)| turn.counts()).count();
    while counted(&measured) < turns as usize && measured.len() < (TRIES * turns) as usize {
        let before = Account::now()?;
        let rtt = bare(bed)?;
        let pair = bed.pair().context("the protected pair")?;
        let load = Load { requests, clients, pipeline: 1 };
        redis_benchmark::measure(bed.lab.client(), bed.server(), load, bed.patience(60.0))?;
        // Who asks for the first time in a while has distributions that are up to a second old; the next ones are fresh.
        pair.primary.status()?;
        bed.pause(RENEWAL)?;
        let delay = pair.primary.status()?.output_delay.context("no output was held")?;
        let turn = Turn {
            stolen: thousandth(Account::now()?.stolen_since(&before) * 100.0),
            over_rtt_p50: thousandth(delay.release_p50_us / rtt.median),
            over_rtt_p99: thousandth(delay.release_p99_us / rtt.median),
        };
        measured.push((turn, rtt, delay));
    }
    let made = measured.iter().map(|(turn, ..)| turn.clone()).collect();
    if counted(&measured) > 0 {
        measured.retain(|(turn, ..)| turn.counts());
    }
    let middle = |of: &dyn Fn(RoundTrip, &OutputDelay) -> f64| {
        median(measured.iter().map(|(_, rtt, delay)| of(*rtt, delay)).collect())
    };
    let of = |time: fn(&OutputDelay) -> f64| middle(&|_, delay| time(delay));
    let over_rtt = |time: fn(&OutputDelay) -> f64| thousandth(middle(&|rtt, delay| time(delay) / rtt.median));
    Ok(Row {
        clients,
        turns: made,
        rtt_us: thousandth(middle(&|rtt, _| rtt.median)),
        rtt_us_p99: thousandth(middle(&|rtt, _| rtt.p99)),
        delay_us_p50: of(|delay| delay.release_p50_us),
        delay_us_p99: of(|delay| delay.release_p99_us),
        total_us_p50: of(|delay| delay.total_p50_us),
        total_us_p99: of(|delay| delay.total_p99_us),
        over_rtt_p50: over_rtt(|delay| delay.release_p50_us),
        over_rtt_p99: over_rtt(|delay| delay.release_p99_us),
        p99_over_rtt_p99: thousandth(middle(&|rtt, delay| delay.release_p99_us / rtt.p99)),
        total_over_rtt_p50: over_rtt(|delay| delay.total_p50_us),
        total_over_rtt_p99: over_rtt(|delay| delay.total_p99_us),
        stages: measured.pop().map(|(.., delay)| delay.stages).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_p99_says_nothing_where_no_turn_was_left_alone() {
        let row = |stolen: &[f64]| {
            let turn = |stolen: &f64| Turn { stolen: *stolen, over_rtt_p50: 0.1, over_rtt_p99: 1.0 };
            Row { clients: 50, turns: stolen.iter().map(turn).collect(), ..Row::default() }
        };
        assert_eq!((row(&[0.0, 0.3, 0.31]).counted(), row(&[0.0, 0.31]).held_up()), ((2, 1), None));
        let why = row(&[2.5, 0.31]).held_up().unwrap();
        assert!(
            why.contains("50 clients") && why.contains("took 0.3 % of the time or more in each of 2"),
            "{why}"
        );
    }
}
