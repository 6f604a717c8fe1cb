//! One run: a fresh pair, a client, one fault, and what must hold afterwards.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use tandem_arbiter::{Arbiter, Side as Seat};
use tandem_vmm::host::control::Role;

use super::fault::{Fault, Kind};
use crate::bed::{Bed, Pair};
use crate::client::{Client, Report};
use crate::lab::{FrameWatch, Host};
use crate::process::Process;
use crate::random::Random;

/// Between two looks at the sides.
const LOOK: Duration = Duration::from_millis(2);

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The kind of fault.
    pub kind: Option<Kind>,
    /// INCR and SET acknowledged.
    pub acked: u64,
    /// Of these, gone.
    pub lost: u64,
    /// From the fault to the first reply after it; `None` where the clients need not notice.
    pub outage: Option<Duration>,
    /// Two sides ran the VM at the same time.
    pub two_live: bool,
    /// A side said that the two differ.
    pub diverged: bool,
    /// The sides had switched by themselves before the fault, which was then left out: the machine was too
    /// busy for the heartbeats.
    pub unprompted: bool,
    /// Everything that is not as it must be, in words.
    pub problems: Vec<String>,
}

/// What the fault did.
#[derive(Debug, Default)]
struct Struck {
    /// When it began.
    at: Option<Instant>,
    /// Who must run the VM in the end, if only one may.
    survivor: Option<Host>,
    /// Nobody is left.
    nobody: bool,
    /// The side that was killed had won the next generation a moment before: the machine was too busy for
    /// the heartbeats, and nobody is left.
    winner_killed: bool,
    /// What the pair refused to do.
    refused: Option<String>,
    /// The clients' wait is the figure.
    measured: bool,
    /// A host from which nothing may leave in the guest's name.
    silent: Option<(Host, FrameWatch)>,
    /// The kernel takes a device away when its last user has let go of it.
    removal: Option<Process>,
}

/// Runs once. What the pair does wrong is in the outcome.
///
/// # Errors
/// When the lab itself fails, or the user wants to stop.
pub fn run(bed: &mut Bed, seed: u64, allowed: &[Kind]) -> anyhow::Result<Outcome> {
    let mut random = Random::new(seed);
    let fault = Fault::draw(&mut random, allowed);
    let mut outcome = Outcome { kind: Some(fault.kind), ..Outcome::default() };
    let mut pair = match bed.pair() {
        Ok(pair) => pair,
        Err(error) if bed.interrupted().requested() => return Err(error),
        Err(error) => {
            outcome.problems.push(format!("the pair did not start: {error:#}"));
            return Ok(outcome);
        }
    };
    let load = bed.load(random.next());
    let stragglers = load.stragglers;
    let client = Client::start(Some(bed.lab.client()), load)?;
    if let Err(error) = client.wait_for_replies(Instant::now(), bed.patience(5.0)) {
        outcome.problems.push(format!("before the fault: {error:#}"));
        return Ok(outcome);
    }
    bed.pause(fault.after * bed.spec.pace.patience)?;
    let whole = pair.is_whole();
    let mut struck = if whole { strike(bed, &mut pair, &fault)? } else { Struck::default() };
    outcome.unprompted = !whole || struck.winner_killed;
    outcome.problems.extend(struck.refused.clone());
    if struck.nobody || struck.winner_killed {
        outcome.acked = client.abandon()?.acked;
        judge_nobody(bed, &mut pair, &mut outcome);
        return Ok(outcome);
    }
    if struck.measured {
        // Replies that come in before may have been under way at the fault: they end no outage.
        bed.pause(stragglers)?;
    }
    if let Err(error) = client.wait_for_replies(Instant::now(), bed.patience(5.0)) {
        outcome.problems.push(format!("after the fault: {error:#}"));
    }
    judge_sides(bed, &mut pair, &struck, &mut outcome);
    if let Some(removal) = &mut struck.removal
        && !removal.wait(bed.patience(2.0)).is_some_and(|status| status.success())
    {
        outcome.problems.push("a side holds on to the RDMA device that was removed".to_owned());
    }
    judge_client(&client.finish()?, &struck, &mut outcome);
    judge_silence(struck.silent, &mut outcome)?;
    Ok(outcome)
}

fn strike(bed: &Bed, pair: &mut Pair, fault: &Fault) -> anyhow::Result<Struck> {
    let lasts = fault.lasts * bed.spec.pace.patience.min(3);
    let at = Some(Instant::now());
    let mut struck = Struck { at, ..Struck::default() };
    match fault.kind {
        Kind::KillPrimary => {
            pair.primary.process.kill();
            struck.winner_killed = has_won(pair, Seat::Primary)?;
            (struck.survivor, struck.measured) = (Some(Host::Backup), true);
        }
        Kind::KillBackup => {
            struck.silent = Some((Host::Backup, bed.lab.watch_guest_frames(Host::Backup)?));
            pair.backup.process.kill();
            struck.winner_killed = has_won(pair, Seat::Backup)?;
            struck.survivor = Some(Host::Primary);
        }
        Kind::FreezePrimary => {
            pair.primary.freeze();
            if wait_for_live(bed, pair, Host::Backup, lasts)? {
                struck.silent = Some((Host::Primary, bed.lab.watch_guest_frames(Host::Primary)?));
                (struck.survivor, struck.measured) = (Some(Host::Backup), true);
            }
            bed.pause(lasts.saturating_sub(at.map_or(lasts, |at| at.elapsed())))?;
            pair.primary.thaw();
        }
        Kind::FreezeBackup => {
            struck.silent = Some((Host::Backup, bed.lab.watch_guest_frames(Host::Backup)?));
            pair.backup.freeze();
            if wait_for_live(bed, pair, Host::Primary, lasts)? {
                struck.survivor = Some(Host::Primary);
            }
            bed.pause(lasts.saturating_sub(at.map_or(lasts, |at| at.elapsed())))?;
            pair.backup.thaw();
        }
        Kind::CutLog => {
            bed.lab.log_link(false)?;
            bed.pause(lasts)?;
            bed.lab.log_link(true)?;
        }
        Kind::ArbiterAway => {
            let away = pair.files.arbiter.with_extension("away");
            fs::rename(&pair.files.arbiter, &away).context("cannot move the arbiter")?;
            pair.primary.process.kill();
            bed.pause(lasts)?;
            fs::rename(&away, &pair.files.arbiter).context("cannot move the arbiter back")?;
            struck.winner_killed = has_won(pair, Seat::Primary)?;
            struck.survivor = Some(Host::Backup);
        }
        Kind::SlowBackup => {
            while at.is_some_and(|at| at.elapsed() < lasts) {
                pair.backup.freeze();
                bed.pause(fault.beat[0])?;
                pair.backup.thaw();
                bed.pause(fault.beat[1])?;
            }
        }
        Kind::KillBoth => {
            pair.primary.process.kill();
            std::thread::sleep(fault.beat[0] * 4);
            pair.backup.process.kill();
            struck.nobody = true;
        }
        Kind::Failover => match pair.primary.failover() {
            Ok(_) => (struck.survivor, struck.measured) = (Some(Host::Backup), true),
            Err(error) => struck.refused = Some(format!("the primary does not hand over: {error:#}")),
        },
        Kind::RemoveDevice => {
            let host = if fault.beat[0].as_micros().is_multiple_of(2) { Host::Primary } else { Host::Backup };
            let devices = bed.rdma_devices().context("this pair has no RDMA device")?;
            struck.removal = Some(devices.remove(&bed.lab, host)?);
        }
    }
    Ok(struck)
}

/// Waits until that side runs alone, but no longer than `patience`.
fn wait_for_live(bed: &Bed, pair: &mut Pair, host: Host, patience: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + patience;
    let side = match host {
        Host::Primary => &pair.primary,
        Host::Backup => &pair.backup,
    };
    while side.role() != Some(Role::Live) {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        bed.pause(LOOK)?;
    }
    Ok(true)
}

/// Whether that side has won a generation after the first, as the arbiter remembers it.
fn has_won(pair: &Pair, seat: Seat) -> anyhow::Result<bool> {
    let state = Arbiter::open(&pair.files.arbiter)?.show()?;
    Ok(state.claims.iter().any(|claim| claim.generation > 1 && claim.side == seat))
}

fn judge_nobody(bed: &Bed, pair: &mut Pair, outcome: &mut Outcome) {
    for side in pair.sides() {
        // One that was not killed has lost, and finds out.
        let deadline = Instant::now() + bed.patience(2.0);
        while !side.has_stopped() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        if !side.has_stopped() {
            outcome.problems.push(format!("the {} runs on", side.process.name()));
        }
        outcome.diverged |= side.divergence().is_some();
    }
}

/// In the end exactly one side runs the VM, and the other has stopped or protects it.
fn judge_sides(bed: &Bed, pair: &mut Pair, struck: &Struck, outcome: &mut Outcome) {
    let deadline = Instant::now() + bed.patience(2.0);
    loop {
        let runs = pair.sides().map(|side| side.runs_the_vm());
        let right = match struck.survivor {
            Some(Host::Primary) => runs == [true, false] && pair.backup.has_stopped(),
            Some(Host::Backup) => runs == [false, true] && pair.primary.has_stopped(),
            None => {
                let whole =
                    pair.primary.role() == Some(Role::Primary) && pair.backup.role() == Some(Role::Backup);
                whole
                    || runs == [true, false] && pair.backup.has_stopped()
                    || runs == [false, true] && pair.primary.has_stopped()
            }
        };
        if right {
            break;
        }
        if Instant::now() >= deadline {
            outcome.two_live = runs == [true, true];
            let states = pair.sides().map(|side| side.state());
            outcome.problems.push(format!("in the end {}", states.join("; ")));
            break;
        }
        std::thread::sleep(LOOK);
    }
    for side in pair.sides() {
        if let Some(told) = side.divergence() {
            outcome.diverged = true;
            outcome.problems.push(format!("divergence: {told}"));
        }
    }
}

fn judge_client(report: &Report, struck: &Struck, outcome: &mut Outcome) {
    (outcome.acked, outcome.lost) = (report.acked, report.lost);
    if let Some(why) = &report.unreachable {
        outcome.problems.push(format!("could not be read back: {why}"));
    }
    if report.violation_count > 0 {
        outcome.problems.push(format!("{} wrong answers", report.violation_count));
    }
    outcome.problems.extend(report.violations.iter().map(ToString::to_string));
    if report.connections_lost > 0 {
        outcome.problems.push(format!("{} connections were reset", report.connections_lost));
    }
    if let Some(at) = struck.at.filter(|_| struck.measured) {
        outcome.outage = report.outage(at);
        if outcome.outage.is_none() {
            outcome.problems.push("no reply came after the fault".to_owned());
        }
    }
}

fn judge_silence(silent: Option<(Host, FrameWatch)>, outcome: &mut Outcome) -> anyhow::Result<()> {
    if let Some((host, mut watch)) = silent {
        let frames = watch.count()?;
        if frames > 0 {
            let name = if host == Host::Primary { "frozen primary" } else { "backup" };
            outcome.problems.push(format!("{frames} frames of the guest left the {name}"));
            outcome.two_live = true;
        }
    }
    Ok(())
}
