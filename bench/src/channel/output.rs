//! The output delay against the bare round trip of the same transport, in one run.
//!
//! A pair in the lab's network namespaces, primary and backup each on a core. The delay is that of every output
//! from the guest's kick until its release, by the primary's own histograms (`tandem status`). The system call that writes
//! it comes behind that, and so does the turn of those before it: an unprotected machine has both too. With one
//! client on the primary's core that call takes as long as the client, which the packet wakes: the whole, write and queue
//! included, stands beside it as `total`. The round trip is the ping-pong's over the same cable and between the same cores,
//! right before each pair. Two loads, each with pairs of its own: one client, whose every reply waits for its own
//! log, and fifty, whose replies share it.

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

/// Clients, and requests of each command.
const LOADS: [(u32, u64); 2] = [(1, 4_000), (50, 30_000)];

/// One load.
#[derive(Debug, Default, Json)]
pub(crate) struct Row {
    pub(crate) clients: u32,
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
    let mut measured: Vec<(RoundTrip, OutputDelay)> = Vec::new();
    for _ in 0..turns {
        let rtt = bare(bed)?;
        let pair = bed.pair().context("the protected pair")?;
        let load = Load { requests, clients, pipeline: 1 };
        redis_benchmark::measure(bed.lab.client(), bed.server(), load, bed.patience(60.0))?;
        // Who asks for the first time in a while has distributions that are up to a second old; the next ones are fresh.
        pair.primary.status()?;
        bed.pause(RENEWAL)?;
        measured.push((rtt, pair.primary.status()?.output_delay.context("no output was held")?));
    }
    let middle = |of: &dyn Fn(RoundTrip, &OutputDelay) -> f64| {
        median(measured.iter().map(|(rtt, delay)| of(*rtt, delay)).collect())
    };
    let of = |time: fn(&OutputDelay) -> f64| middle(&|_, delay| time(delay));
    let over_rtt = |time: fn(&OutputDelay) -> f64| thousandth(middle(&|rtt, delay| time(delay) / rtt.median));
    Ok(Row {
        clients,
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
        stages: measured.pop().map(|(_, delay)| delay.stages).unwrap_or_default(),
    })
}
