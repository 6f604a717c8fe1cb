//! `run`, `record` and `replay`.

use std::fmt;

use super::args::{RecordArgs, ReplayArgs, VmArgs};
use super::{Outcome, load, print};
use crate::host::config::Config;
use crate::host::run::replay::{ReplayError, Replayed, replay};
use crate::host::run::solo::{self, Recording, Summary};
use crate::host::shutdown::Shutdown;
use crate::machine::output::PowerEvent;
use crate::replay::batch::Kind;
use crate::replay::follower::FollowError;

pub(super) fn run(args: &VmArgs) -> anyhow::Result<Outcome> {
    let summary = solo::run(&load(args)?, None, &Shutdown::on_signals()?)?;
    tracing::info!("{}", Ending(&summary));
    Ok(Outcome::Done)
}

pub(super) fn record(args: &RecordArgs) -> anyhow::Result<Outcome> {
    let recording = Recording { log: &args.log, stop_after: args.stop_after, exits: args.exits };
    let summary = solo::run(&load(&args.vm)?, Some(&recording), &Shutdown::on_signals()?)?;
    print(|out| {
        writeln!(out, "recorded {}", args.log.display())?;
        Ok(write!(out, "{}{}", Ending(&summary), Report(&summary))?)
    })
}

pub(super) fn again(args: &ReplayArgs) -> anyhow::Result<Outcome> {
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let divergence = match replay(config.as_ref(), &args.log, args.verify) {
        Ok(replayed) => {
            return print(|out| {
                Ok(write!(out, "{}{}", Ending(&replayed.summary), Verdict(&replayed, args.verify))?)
            });
        }
        Err(ReplayError::Divergence(divergence)) => divergence,
        Err(ReplayError::Follow(FollowError::Divergence(divergence))) => *divergence,
        Err(error) => return Err(error.into()),
    };
    print(|out| Ok(writeln!(out, "{divergence}")?))?;
    Ok(Outcome::Diverged)
}

/// How a run ended, and its exits.
struct Ending<'a>(&'a Summary);

impl fmt::Display for Ending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.0.power {
            Some(PowerEvent::Off) => "the guest switched itself off",
            Some(PowerEvent::Reset) => "the guest asked for a reset",
            None => "stopped as asked",
        };
        writeln!(f, "{how} after {} points", self.0.points)?;
        let exits: Vec<_> =
            self.0.exits.iter().filter(|e| e.1 > 0).map(|(k, n)| format!("{k} {n}")).collect();
        writeln!(f, "exits: {}", exits.join(", "))?;
        for (name, count) in [("clock pages", self.0.clock_pages), ("transmit polls", self.0.transmit_polls)]
        {
            if count > 0 {
                writeln!(f, "{name}: {count}")?;
            }
        }
        Ok(())
    }
}

/// The log's traffic and the forced stops.
struct Report<'a>(&'a Summary);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let traffic = &self.0.traffic;
        writeln!(f, "log: {} bytes", traffic.total_bytes())?;
        for kind in Kind::ALL {
            let (count, bytes) = (traffic.count[kind.index()], traffic.bytes[kind.index()]);
            if count > 0 {
                writeln!(f, "  {:<12} {count:>9} entries {bytes:>12} bytes", kind.name())?;
            }
        }
        let stops = &self.0.stops;
        writeln!(
            f,
            "forced stops: {}, {} pages, {} bytes packed to {}",
            stops.stops, stops.pages, stops.raw_bytes, stops.packed_bytes
        )
    }
}

/// What a replay compared.
struct Verdict<'a>(&'a Replayed, bool);

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(replayed, verify) = self;
        let stops = &replayed.summary.stops;
        if stops.stops > 0 {
            let share = 100.0 * stops.already_there as f64 / stops.pages.max(1) as f64;
            writeln!(
                f,
                "forced stops: {}, {} pages, {share:.0} % of them were there already",
                stops.stops, stops.pages
            )?;
        }
        if !replayed.whole {
            writeln!(f, "the recording was cut off; it was replayed as far as it goes")?;
        }
        match (verify, replayed.end_compared) {
            (false, _) => {
                writeln!(f, "replayed; every digest in the log was equal (--verify compares every exit)")
            }
            (true, true) => writeln!(
                f,
                "verified: {} exits, all registers at each, and devices and memory at the end are equal",
                replayed.exits_compared
            ),
            (true, false) => {
                writeln!(f, "verified: {} exits, all registers at each, are equal", replayed.exits_compared)
            }
        }
    }
}
