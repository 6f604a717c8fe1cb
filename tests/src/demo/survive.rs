//! A client that remembers everything, and a primary that is killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use tandem_vmm::host::control::{Pretty, Role, Status};

use super::story::{self, Story};
use super::{Verdict, round};
use crate::bed::{Bed, CORES, Pair};
use crate::client::{Client, ClockReport, ClockWatch, Load, Report};
use crate::random::{Random, fresh_seed};

/// Between two questions for the guest's clock, on hardware.
const CLOCK: Duration = Duration::from_millis(20);

/// Kills the primary under load, tells what came of it, and judges it.
pub(super) fn survive(bed: &Bed, pair: &mut Pair, say: &Story, verdict: &mut Verdict) -> anyhow::Result<()> {
    let mut random = Random::new(fresh_seed());
    let load = load(bed, random.next());
    let connections = load.busy + load.paced;
    let step = say.step("the client works")?;
    let client = Client::start(Some(bed.lab.client()), load)?;
    let clock = ClockWatch::start(bed.lab.client(), bed.server(), CLOCK * bed.spec.pace.patience.min(5))?;
    client.wait_for_replies(Instant::now(), bed.patience(5.0))?;
    bed.pause(random.micros(500_000..=1_500_000) * bed.spec.pace.patience.min(4))?;
    if !pair.is_whole() {
        anyhow::bail!("the sides switched before anybody was killed: is this machine too busy?");
    }
    drop(step);

    let before = client.acked();
    let (killed, killed_at) = (Instant::now(), SystemTime::now());
    pair.primary.process.kill();
    let step = say.step("the primary is killed")?;
    let answered_at = pair
        .backup
        .wait_for_role(&[Role::Live], bed.patience(10.0))
        .and_then(|_| client.wait_for_replies(Instant::now(), bed.patience(10.0)))
        .map(|()| killed.elapsed());
    bed.pause(Duration::from_millis(200) * bed.spec.pace.patience.min(5))?;
    drop(step);
    let acked = client.acked();
    let step = say.step("every key is read back")?;
    let report = client.finish()?;
    drop(step);
    let clock = clock.finish();
    verdict.ops_acked = report.acked;
    verdict.ops_lost = report.lost;
    let outage = report.outage(killed);
    verdict.failover_ms = outage.map(|outage| round(outage.as_secs_f64() * 1e3, 1));

    say.at(Duration::ZERO, &format!("primary killed (SIGKILL), {before} operations acknowledged"))?;
    let mut events = story::after(pair.backup.process.standard_error(), killed_at);
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
    tell_clock(say, &clock)?;
    let survivor = pair.backup.status()?;
    tell_survivor(say, &survivor)?;
    verdict.verdict = judge(&report, &clock, &survivor, verdict);
    Ok(())
}

/// In software emulation a guest answers some two hundred requests a second: the client asks for less.
fn load(bed: &Bed, seed: u64) -> Load {
    let pace = &bed.spec.pace;
    let load = Load { patience: bed.patience(5.0), core: Some(CORES[0]), ..Load::new(bed.server(), seed) };
    if pace.is_emulated() {
        // A primary that dies has answers on their way for longer there, and nobody takes over before this.
        let stragglers = Duration::from_millis(pace.heartbeat_ms * pace.missed / 2);
        return Load { busy: 4, pace: Duration::from_millis(200), stragglers, ..load };
    }
    load
}

fn tell_clock(say: &Story, clock: &ClockReport) -> anyhow::Result<()> {
    let how = if clock.back.is_zero() {
        format!("never went back; it stood still for {:.3} s meanwhile", clock.behind.as_secs_f64())
    } else {
        format!("went back by {:.6} s", clock.back.as_secs_f64())
    };
    say.line(&format!("   the guest's clock, read {} times, {how}", clock.readings))
}

/// What `tandem status` says of the side that is left, without the long lists.
fn tell_survivor(say: &Story, status: &Status) -> anyhow::Result<()> {
    let exits = BTreeMap::from([("all".to_owned(), status.exits.values().sum())]);
    let short = Status { log: Vec::new(), exits, ..status.clone() };
    say.line("   tandem status, of the side that is left:")?;
    for line in Pretty(&short).to_string().lines() {
        say.line(&format!("     {line}"))?;
    }
    Ok(())
}

fn judge(report: &Report, clock: &ClockReport, survivor: &Status, verdict: &Verdict) -> String {
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
    if clock.readings < 2 {
        return "the guest's clock could not be read".to_owned();
    }
    if !clock.back.is_zero() {
        return format!("the guest's clock went back by {:?}", clock.back);
    }
    if survivor.role != Role::Live {
        return format!("the backup serves, and says that it is {}", survivor.role.name());
    }
    "ok".to_owned()
}
