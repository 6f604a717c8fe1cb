//! A client that remembers everything, and a primary that is killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use tandem_vmm::host::control::{Pretty, Role, Status};

use super::story::{self, Story};
use super::{Verdict, round};
use crate::bed::{Bed, Pair};
use crate::client::{Client, ClockReport, ClockWatch, Report, Within};
use crate::random::{Random, fresh_seed};

/// Between two questions for the guest's clock, on hardware.
const CLOCK: Duration = Duration::from_millis(20);

/// Seconds for which a busy host may hold up a guest; in software emulation a multiple of it.
const HELD_UP: f64 = 0.5;

/// Kills the primary under load, tells what came of it, and judges it.
pub(super) fn survive(
    bed: &Bed,
    pair: &mut Pair,
    say: &Story,
    verdict: &mut Verdict,
) -> anyhow::Result<Report> {
    let mut random = Random::new(fresh_seed());
    let load = bed.load(random.next());
    let connections = load.busy + load.paced;
    let step = say.step("the client works")?;
    let client = Client::start(Some(bed.lab.client()), load)?;
    let clock = ClockWatch::start(bed.lab.client(), bed.server(), CLOCK * bed.spec.pace.patience.min(5))?;
    client.wait_for_replies(Instant::now(), bed.patience(5.0))?;
    bed.pause(random.micros(500_000..=1_500_000) * bed.spec.pace.patience.min(4))?;
    if !pair.is_whole() {
        anyhow::bail!("the sides switched before anybody was killed: is this machine too busy?");
    }
    // A guest with a TSC watches its clocks from within, too.
    let watches = bed.spec.guest.watches_its_clocks();
    let within = |reports| {
        watches.then(|| Within::ask(bed.lab.client(), bed.server(), reports, bed.patience(5.0))).transpose()
    };
    let seen_before = within(None)?;
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
    // One report may have been on its way at the kill.
    let within = within(seen_before.map(|within| within.reports + 1));
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
    let within = within?;
    say.line(&format!(
        "   {} more operations since; now every key is read back: {} acknowledged, {} lost",
        acked.saturating_sub(before),
        report.acked,
        report.lost
    ))?;
    for violation in &report.violations {
        say.line(&format!("   wrong: {violation}"))?;
    }
    tell_clock(say, &clock, within.as_ref())?;
    let survivor = pair.backup.status()?;
    tell_survivor(say, &survivor)?;
    verdict.verdict = judge(&report, &survivor, verdict)
        .or_else(|| {
            let longest = outage.unwrap_or_default() + bed.patience(HELD_UP);
            judge_clocks(&clock, within.zip(seen_before), longest)
        })
        .unwrap_or_else(|| "ok".to_owned());
    Ok(report)
}

fn tell_clock(say: &Story, clock: &ClockReport, within: Option<&Within>) -> anyhow::Result<()> {
    let how = if clock.back.is_zero() {
        format!("never went back; it stood still for {:.3} s meanwhile", clock.behind.as_secs_f64())
    } else {
        format!("went back by {:.6} s", clock.back.as_secs_f64())
    };
    say.line(&format!("   the guest's clock, read {} times, {how}", clock.readings))?;
    for (name, seen) in within.iter().flat_map(|within| within.clocks()) {
        say.line(&format!("   {name}, {seen}"))?;
    }
    Ok(())
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

/// What is wrong with what the guest did, if anything.
fn judge(report: &Report, survivor: &Status, verdict: &Verdict) -> Option<String> {
    if let Some(why) = &report.unreachable {
        return Some(format!("the guest could not be read back: {why}"));
    }
    if report.lost > 0 {
        return Some(format!("{} acknowledged operations lost", report.lost));
    }
    if report.violation_count > 0 {
        return Some(format!("{} wrong answers", report.violation_count));
    }
    if report.connections_lost > 0 {
        return Some(format!("{} connections were reset", report.connections_lost));
    }
    if verdict.failover_ms.is_none() {
        return Some("no reply came after the primary was killed".to_owned());
    }
    if survivor.role != Role::Live {
        return Some(format!("the backup serves, and says that it is {}", survivor.role.name()));
    }
    None
}

/// What is wrong with the guest's clocks, if anything. `within`: in the end, and before the kill. `longest`: how far one
/// may jump, on top of what a host that is busy made it jump before.
fn judge_clocks(clock: &ClockReport, within: Option<(Within, Within)>, longest: Duration) -> Option<String> {
    if clock.readings < 2 {
        return Some("the guest's clock could not be read".to_owned());
    }
    if !clock.back.is_zero() {
        return Some(format!("the guest's clock went back by {:?}", clock.back));
    }
    if clock.ahead > longest {
        return Some(format!("the guest's clock got ahead of ours by {:?}", clock.ahead));
    }
    let (within, before) = within?;
    within.clocks().into_iter().zip(before.clocks()).find_map(|((name, seen), (_, before))| {
        if seen.readings < 2 {
            return Some(format!("{name} was not read in the guest"));
        }
        if seen.back > 0 {
            return Some(format!("{name} went back by {} ns in the guest", seen.back));
        }
        let step = Duration::from_nanos(seen.step);
        let held_up = Duration::from_nanos(before.step);
        (step > longest + held_up * 2).then(|| {
            format!("{name} jumped by {step:?} in the guest, by {held_up:?} at most before the kill")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Seen;

    #[test]
    fn a_clock_that_went_back_or_jumped_is_noticed_from_outside_and_from_within() {
        let second = Duration::from_secs(1);
        let clock = ClockReport { readings: 9, ..ClockReport::default() };
        let seen = Seen { readings: 9, back: 0, step: 900_000_000 };
        let within = Within { reports: 2, monotonic: seen, real: seen, tsc: seen };
        assert_eq!(judge_clocks(&clock, None, second), None);
        let before = Within { reports: 1, ..Within::default() };
        assert_eq!(judge_clocks(&clock, Some((within, before)), second), None);
        let wrong = [
            (ClockReport { back: second, ..clock }, within),
            (ClockReport { ahead: second * 2, ..clock }, within),
            (clock, Within { tsc: Seen { back: 1, ..seen }, ..within }),
            (clock, Within { monotonic: Seen { step: 2_000_000_000, ..seen }, ..within }),
            (clock, Within { real: Seen { readings: 0, ..seen }, ..within }),
        ];
        for (clock, within) in wrong {
            assert!(judge_clocks(&clock, Some((within, before)), second).is_some(), "{clock:?} {within:?}");
        }
        let jumped = Within { real: Seen { step: 2_500_000_000, ..seen }, ..within };
        assert_eq!(judge_clocks(&clock, Some((jumped, within)), second), None, "the host was as busy before");
    }
}
