//! What protection costs: the same load on the same VM, alone and protected, by turns.

use std::time::{Duration, Instant};

use anyhow::Context;
use tandem_vmm::host::control::Status;

use super::story::Story;
use crate::bed::{Bed, Pair};
use crate::median::median;
use crate::redis_benchmark::{Rates, run};

/// Turns of each, on hardware.
const ROUNDS: u32 = 3;
/// In software emulation, where a boot takes half a minute.
const FEW_ROUNDS: u32 = 1;
/// How long a test of a turn should take on hardware.
const TURN: f64 = 0.8;

/// What it comes to.
#[derive(Clone, Debug, Default)]
pub(super) struct Cost {
    alone: Vec<Rates>,
    pair: Vec<Rates>,
    pub(super) output_delay_us_p50: Option<f64>,
    pub(super) log_mbit_s: f64,
}

impl Cost {
    /// Protected by unprotected: the medians of the turns, and of SET and GET the geometric mean.
    pub(super) fn ratio(&self) -> f64 {
        let ratio = |rate: fn(&Rates) -> f64| {
            let of = |turns: &[Rates]| median(turns.iter().map(rate).collect());
            of(&self.pair) / of(&self.alone)
        };
        (ratio(|rates| rates.set) * ratio(|rates| rates.get)).sqrt()
    }
}

/// Measures. The pair of the last turn goes on running.
pub(super) fn cost(bed: &mut Bed, say: &Story) -> anyhow::Result<(Cost, Pair)> {
    let mut cost = Cost::default();
    let mut requests = None;
    let mut last = None;
    let rounds = if bed.spec.pace.is_emulated() { FEW_ROUNDS } else { ROUNDS };
    for _ in 0..rounds {
        // The pair of the turn before ends first.
        drop(last.take());
        let step = say.step("the unprotected VM boots")?;
        let side = bed.alone().context("the unprotected VM")?;
        drop(step);
        let step = say.step("redis-benchmark against the unprotected VM")?;
        let requests = match requests {
            Some(requests) => requests,
            None => *requests.insert(calibrate(bed)?),
        };
        let rates = benchmark(bed, requests)?;
        drop(step);
        tell(say, "unprotected", rates)?;
        cost.alone.push(rates);
        drop(side);

        let step = say.step("the protected pair boots")?;
        let pair = bed.pair().context("the protected pair")?;
        drop(step);
        let step = say.step("redis-benchmark against the protected pair")?;
        let (before, began) = (pair.primary.status()?, Instant::now());
        let rates = benchmark(bed, requests)?;
        let (after, took) = (pair.primary.status()?, began.elapsed());
        drop(step);
        tell(say, "protected", rates)?;
        cost.pair.push(rates);
        cost.output_delay_us_p50 = after.output_delay.as_ref().map(|delay| delay.p50_us);
        cost.log_mbit_s =
            log_bytes(&after).saturating_sub(log_bytes(&before)) as f64 * 8e-6 / took.as_secs_f64();
        last = Some(pair);
    }
    Ok((cost, last.context("no turn was made")?))
}

fn tell(say: &Story, what: &str, rates: Rates) -> anyhow::Result<()> {
    say.line(&format!("   {what:<12} SET {:>8.0}/s   GET {:>8.0}/s", rates.set, rates.get))
}

/// How many requests make a turn.
fn calibrate(bed: &Bed) -> anyhow::Result<u64> {
    let few = u64::from(2000 / bed.spec.pace.patience).max(100);
    let began = Instant::now();
    benchmark(bed, few)?;
    // Two tests, and what it takes to start them.
    let one = (began.elapsed() / 2).max(Duration::from_millis(1));
    let turn = TURN * f64::from(bed.spec.pace.patience.min(3));
    Ok((few as f64 * turn / one.as_secs_f64()) as u64)
}

fn benchmark(bed: &Bed, requests: u64) -> anyhow::Result<Rates> {
    if bed.interrupted().requested() {
        anyhow::bail!("interrupted");
    }
    run(bed.lab.client(), bed.server(), requests, bed.patience(30.0))
}

fn log_bytes(status: &Status) -> u64 {
    status.log.iter().map(|kind| kind.bytes).sum()
}
