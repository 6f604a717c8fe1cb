//! The demonstration: what protection costs, and that nothing is lost when the primary dies.

mod disk;
mod measure;
mod story;
mod survive;

use serde::Serialize;

use crate::bed::Bed;
use crate::config::Pace;

use measure::{Cost, cost};
use survive::survive;

pub use story::Story;

/// The line at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Which guest: "embedded", "linux".
    pub demo: &'static str,
    /// INCR and SET acknowledged to the checking client.
    pub ops_acked: u64,
    /// Of these, gone after the take-over.
    pub ops_lost: u64,
    /// SIGKILL of the primary to the first reply of the backup.
    pub failover_ms: Option<f64>,
    /// Requests per second of the pair by those of the same VM alone; SET and GET, geometric mean.
    pub ft_ratio: Option<f64>,
    /// Half of all outputs waited at most this long for their acknowledgement.
    pub output_delay_us_p50: Option<f64>,
    /// The log's traffic under redis-benchmark.
    pub log_mbit_s: Option<f64>,
    /// "ok", or what is wrong.
    pub verdict: String,
}

impl Verdict {
    /// Nothing known yet.
    #[must_use]
    pub const fn new(demo: &'static str) -> Self {
        Self {
            demo,
            ops_acked: 0,
            ops_lost: 0,
            failover_ms: None,
            ft_ratio: None,
            output_delay_us_p50: None,
            log_mbit_s: None,
            verdict: String::new(),
        }
    }
}

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What protection costs, before the failure.
    pub cost: bool,
    /// That it is all on the guest's disk, behind it; the bed's VMs have one then.
    pub disk: bool,
}

/// Shows everything and tells it to `say`. What it could find out before an error is in `verdict`.
///
/// # Errors
/// When something does not work that must, or the user wants to stop.
pub fn demo(bed: &mut Bed, plan: Plan, say: &Story, verdict: &mut Verdict) -> anyhow::Result<()> {
    if plan.disk {
        disk::give(bed)?;
    }
    say.line("Two hosts and a client, made of network namespaces; nothing leaves this machine.")?;
    if bed.spec.pace.is_emulated() {
        tell_emulation(say, &bed.spec.pace)?;
    }
    say.line("")?;
    let mut pair = if plan.cost {
        say.line("1. What does protection cost?  redis-benchmark, 50 clients, alternating:")?;
        let (cost, pair) = cost(bed, say)?;
        verdict.ft_ratio = Some(round(cost.ratio(), 3));
        verdict.output_delay_us_p50 = cost.output_delay_us_p50.map(|delay| round(delay, 1));
        verdict.log_mbit_s = Some(round(cost.log_mbit_s, 2));
        tell_cost(say, &cost)?;
        say.line("")?;
        say.line(
            "2. Does it survive?  A client remembers every acknowledged INCR and SET; the primary is killed.",
        )?;
        pair
    } else {
        say.line("A client remembers every acknowledged INCR and SET; the primary is killed.")?;
        let _booting = say.step("the protected pair boots")?;
        bed.pair()?
    };
    let mut report = survive(bed, &mut pair, say, verdict)?;
    if plan.disk && verdict.verdict == "ok" {
        disk::outlast(bed, &mut pair, &mut report, say, verdict)?;
    }
    Ok(())
}

fn tell_emulation(say: &Story, pace: &Pace) -> anyhow::Result<()> {
    let native = Pace::NATIVE;
    say.line("This is inside software emulation: ratios only, the times are no figures. So the pair has")?;
    say.line(&format!(
        "heartbeat_ms = {}, missed = {}, tick_bound_ms = {} here, instead of {}, {} and {}.",
        pace.heartbeat_ms,
        pace.missed,
        pace.tick_bound_ms,
        native.heartbeat_ms,
        native.missed,
        native.tick_bound_ms
    ))
}

fn tell_cost(say: &Story, cost: &Cost) -> anyhow::Result<()> {
    let delay =
        cost.output_delay_us_p50.map_or_else(String::new, |us| format!(", replies wait {us:.0} us for it"));
    say.line(&format!(
        "   protected / unprotected = {:.2}; the log takes {:.1} Mbit/s{delay}",
        cost.ratio(),
        cost.log_mbit_s
    ))
}

fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}
