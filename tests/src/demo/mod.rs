//! The demonstration: what protection costs, and that nothing is lost when the primary dies.

mod measure;
mod story;

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tandem_vmm::host::control::Role;

use crate::bed::{Bed, CORES, Pair};
use crate::client::{Client, Load, Report};
use crate::random::{Random, fresh_seed};

use measure::{Cost, cost};
use story::Story;

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

/// Shows everything and tells it on `out`. What it could find out before an error is in `verdict`.
///
/// # Errors
/// When something does not work that must, or the user wants to stop.
pub fn demo(bed: &mut Bed, out: &mut dyn Write, verdict: &mut Verdict) -> anyhow::Result<()> {
    let mut say = Story::new(out);
    say.line("Two hosts and a client, made of network namespaces; nothing leaves this machine.")?;
    say.line("")?;
    say.line("1. What does protection cost?  redis-benchmark, 50 clients, alternating:")?;
    let (cost, mut pair) = cost(bed, &mut say)?;
    verdict.ft_ratio = Some(round(cost.ratio(), 3));
    verdict.output_delay_us_p50 = cost.output_delay_us_p50.map(|delay| round(delay, 1));
    verdict.log_mbit_s = Some(round(cost.log_mbit_s, 2));
    tell_cost(&mut say, &cost)?;

    say.line("")?;
    say.line(
        "2. Does it survive?  A client remembers every acknowledged INCR and SET; the primary is killed.",
    )?;
    let report = survive(bed, &mut pair, &mut say, verdict)?;
    verdict.verdict = judge(&report, verdict);
    Ok(())
}

fn tell_cost(say: &mut Story<'_>, cost: &Cost) -> anyhow::Result<()> {
    let delay =
        cost.output_delay_us_p50.map_or_else(String::new, |us| format!(", replies wait {us:.0} us for it"));
    say.line(&format!(
        "   protected / unprotected = {:.2}; the log takes {:.1} Mbit/s{delay}",
        cost.ratio(),
        cost.log_mbit_s
    ))
}

fn survive(bed: &Bed, pair: &mut Pair, say: &mut Story<'_>, verdict: &mut Verdict) -> anyhow::Result<Report> {
    let mut random = Random::new(fresh_seed());
    let load =
        Load { patience: bed.patience(5.0), core: Some(CORES[0]), ..Load::new(bed.server(), random.next()) };
    let connections = load.busy + load.paced;
    let client = Client::start(Some(bed.lab.client()), load)?;
    client.wait_for_replies(Instant::now(), bed.patience(5.0))?;
    bed.pause(random.micros(500_000..=1_500_000) * bed.spec.pace.patience.min(4))?;
    if !pair.is_whole() {
        anyhow::bail!("the sides switched before anybody was killed: is this machine too busy?");
    }

    let before = client.acked();
    let (killed, clock) = (Instant::now(), SystemTime::now());
    pair.primary.process.kill();
    let answered_at = pair
        .backup
        .wait_for_role(&[Role::Live], bed.patience(10.0))
        .and_then(|_| client.wait_for_replies(Instant::now(), bed.patience(10.0)))
        .map(|()| killed.elapsed());
    bed.pause(Duration::from_millis(200))?;
    let acked = client.acked();
    let report = client.finish()?;
    verdict.ops_acked = report.acked;
    verdict.ops_lost = report.lost;
    let outage = report.outage(killed);
    verdict.failover_ms = outage.map(|outage| round(outage.as_secs_f64() * 1e3, 1));

    say.at(Duration::ZERO, &format!("primary killed (SIGKILL), {before} operations acknowledged"))?;
    let mut events = story::after(pair.backup.process.standard_error(), clock);
    if let Some(outage) = outage {
        events.push((outage, "first reply from the backup".to_owned()));
    }
    if let Ok(at) = &answered_at {
        events.push((*at, format!("all {connections} connections are answered again, none was reset")));
    }
    events.sort_by_key(|event| event.0);
    for (at, text) in &events {
        say.at(*at, text)?;
    }
    answered_at?;
    say.line(&format!(
        "   {} more operations since; now every key is read back: {} acknowledged, {} lost",
        acked.saturating_sub(before),
        report.acked,
        report.lost
    ))?;
    for violation in &report.violations {
        say.line(&format!("   wrong: {violation}"))?;
    }
    Ok(report)
}

fn judge(report: &Report, verdict: &Verdict) -> String {
    if let Some(why) = &report.unreachable {
        return format!("the guest could not be read back: {why}");
    }
    if report.lost > 0 {
        return format!("{} acknowledged operations lost", report.lost);
    }
    if report.violation_count > 0 {
        return format!("{} wrong answers", report.violation_count);
    }
    if report.connections_lost > 0 {
        return format!("{} connections were reset", report.connections_lost);
    }
    if verdict.failover_ms.is_none() {
        return "no reply came after the primary was killed".to_owned();
    }
    "ok".to_owned()
}

fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}
