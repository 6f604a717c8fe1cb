//! `tandem-bench paper`: the paper's tables with a Linux guest, protected against unprotected.
//!
//! Turns alternate, unprotected and protected, each a fresh boot of the same guest that does all rows. Clients and primary
//! share a core and the backup has another, as two hosts would. Where this machine's KVM takes no Linux guest, both are in
//! a virtme-ng machine in software emulation whose clock counts instructions, each on one of its two processors: what is
//! measured is the same however busy this machine is. Each kind of VM has such a machine for itself then.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tandem_tests::bed::Program;
use tandem_tests::config::Pace;
use tandem_tests::lab;
use tandem_tests::linux::{self, Place};

pub(crate) mod config;
mod console;
pub(crate) mod emulated;
mod failover;
pub(crate) mod fill;
mod load;
pub(crate) mod machine;
mod progress;
mod size;
mod stage;
mod turns;
mod usage;

use crate::report::{EMULATED, Failover, Peer, Report, Row, host};
use emulated::Found;
pub(crate) use emulated::TimeLeft;
use fill::Fill;
use machine::Sources;
use progress::Progress;
use size::Size;
pub(crate) use stage::Kind;
use stage::Stage;
use turns::{Asked, Turns};

/// Of a quick run, everything together: less than five minutes with what comes at its end.
const QUICK: Duration = Duration::from_secs(275);
/// Of a full run.
const FULL: Duration = Duration::from_secs(3600);

/// What to measure, and how long.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Small work, one turn each, under five minutes
    #[arg(long)]
    quick: bool,
    /// Only these rows
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Turns of each kind of VM (default: 3, quick 1)
    #[arg(long)]
    turns: Option<u32>,
    /// For everything together: what is not measured by then is told as missing (default: 3600, quick 275)
    #[arg(long)]
    seconds: Option<u64>,
    /// Also turns of QEMU with the same KVM
    #[arg(long)]
    qemu: bool,
    /// Without the idle pair and the failover at the end
    #[arg(long)]
    no_end: bool,
    /// Where the report goes
    #[arg(long, default_value = "target/bench")]
    pub(crate) report: PathBuf,
}

impl Args {
    /// The run's time, which begins now.
    pub(crate) fn start(&self) -> TimeLeft {
        TimeLeft::of(self.seconds.map_or(if self.quick { QUICK } else { FULL }, Duration::from_secs))
    }
}

/// Measures, prints Markdown and one line of JSON.
///
/// # Errors
/// Nothing runs a Linux guest here, or nothing can be set up.
pub(crate) fn run(args: &Args) -> Result<()> {
    let kinds: &[Kind] =
        if args.qemu { &[Kind::Alone, Kind::Pair, Kind::Qemu] } else { &[Kind::Alone, Kind::Pair] };
    measure("paper", args, args.start(), kinds, Vec::new)
}

/// Measures on these kinds of VMs, in this order, in each turn, in the `time` that is left. `peers` were measured
/// before, or meanwhile.
///
/// # Errors
/// As [`run`].
pub(crate) fn measure(
    bench: &'static str,
    args: &Args,
    time: TimeLeft,
    kinds: &[Kind],
    peers: impl FnOnce() -> Vec<Peer>,
) -> Result<()> {
    if let Some(obstacle) = lab::obstacle() {
        bail!("no lab can be built here: {obstacle}");
    }
    let (sources, cmdline) = sources()?;
    let packages = std::fs::read_to_string(&sources.packages).unwrap_or_default();
    let rows = if args.rows.is_empty() { Row::ALL.to_vec() } else { args.rows.clone() };
    let (mut turns, facts, peers, emulated) = match linux::place(&sources.tandem)? {
        Place::Here => {
            let turns = turns(args, time, kinds, kinds, &rows, (sources, cmdline))?;
            (turns, host::Facts::gather(), peers(), false)
        }
        Place::Emulated => {
            let kind = emulated::kind().context("this is inside a machine that was not made for it")?;
            let turns = turns(args, time, kinds, &[kind], &rows, (sources, cmdline))?;
            return Found { turns, facts: host::Facts::gather(), peers: peers() }.tell();
        }
        Place::VirtmeNg => {
            eprintln!("this machine's KVM does not run Linux guests: the same in virtme-ng machines");
            let (mut all, mut facts) = (Turns::default(), None);
            let found = emulated::measure(&sources, time.left(), kinds)?;
            let mut peers = peers();
            for (kind, found) in found {
                match found {
                    Ok(found) => {
                        all.merge(found.turns);
                        facts = Some(found.facts);
                        peers.extend(found.peers);
                    }
                    Err(why) => {
                        eprintln!("{}: {why}", kind.name());
                        all.lost(kind, &rows, !args.no_end, &why);
                    }
                }
            }
            (all, facts.unwrap_or_else(host::Facts::gather), peers, true)
        }
    };
    let (idle, idle_reason) = split(turns.idle.take());
    let (failover, failover_reason) = split(turns.failover.take());
    let report = Report {
        bench,
        host: facts,
        emulated,
        quick: args.quick,
        rows: rows.iter().map(|row| turns.report(*row, kinds)).collect(),
        idle_log_mbit_s: idle,
        idle_reason,
        failover: failover.map(|(ms, events)| Failover { ms, events }),
        failover_reason,
        peers,
        packages: wanted(&packages),
    };
    report.write(&args.report)?;
    if emulated {
        println!("{EMULATED}");
    }
    println!("the report is in {}", args.report.display());
    println!("{}", report.line());
    Ok(())
}

/// The turns of some of the kinds of VMs, on this machine.
fn turns(
    args: &Args,
    time: TimeLeft,
    kinds: &[Kind],
    here: &[Kind],
    rows: &[Row],
    (sources, cmdline): (Sources, String),
) -> Result<Turns> {
    let turns = args.turns.unwrap_or(if args.quick { 1 } else { 3 });
    ensure!(turns > 0, "nothing to measure");
    let emulated = linux::is_inside();
    let pace = if emulated { Pace::EMULATED } else { Pace::NATIVE };
    let _fill = emulated.then(Fill::start).transpose()?;
    let mut stage = Stage::new(sources, cmdline, pace, time)?;
    let size = Size::new(emulated, args.quick);
    let steps = u64::from(turns) * here.len() as u64 * (rows.len() as u64 + 1) + 1;
    let mut progress = Progress::new(steps);
    let mut all = Turns::default();
    for turn in 1..=turns {
        for kind in here {
            // There is no time for more: the peer bench has all rows, and a long one has them on both clocks.
            let (only, why) = match kind {
                Kind::Qemu if args.quick && kinds.contains(&Kind::Pair) => {
                    (Some(Row::Compile), "a quick run has this row in tandem-bench peers")
                }
                Kind::SameClock if args.quick => {
                    (Some(Row::Transmit), "a quick run has only transmit on this clock")
                }
                _ => (None, ""),
            };
            let (rows, rest): (Vec<_>, Vec<_>) =
                rows.iter().partition(|row| only.is_none_or(|only| only == **row));
            all.leave_out(*kind, &rest, why);
            let end = turn == turns && !args.no_end && *kind == Kind::Pair;
            let asked = Asked { rows: &rows, size: &size, end };
            all.turn(&mut stage, *kind, &asked, &mut progress);
        }
    }
    Ok(all)
}

/// Where everything is that a VM is started with, and the guest's command line.
///
/// # Errors
/// When something is not made yet.
pub(crate) fn sources() -> Result<(Sources, String)> {
    let program = Program::tandem()?;
    let guest = linux::made("bench-guest", "the guest's disks are not made: tests/linux/bench-guest")?;
    let [root, data] = emulated::disks(&guest);
    let sources = Sources {
        tandem: program.path().to_owned(),
        kernel: linux::kernel()?,
        root,
        data,
        packages: guest.join("packages"),
    };
    Ok((sources, linux::cmdline()?))
}

fn split<T>(outcome: Option<Result<T, String>>) -> (Option<T>, Option<String>) {
    match outcome {
        Some(Ok(value)) => (Some(value), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    }
}

/// The software that the rows are about.
fn wanted(packages: &str) -> Vec<String> {
    let names = ["openjdk", "tcc", "make", "postgresql-15", "nginx ", "redis-server", "iperf3", "lua"];
    let is_wanted = |line: &&str| names.iter().any(|name| line.starts_with(name));
    packages.lines().filter(is_wanted).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_a_figure_or_a_reason() {
        assert_eq!(split(Some(Ok(1))), (Some(1), None));
        assert_eq!(split::<u8>(Some(Err("why".to_owned()))), (None, Some("why".to_owned())));
        assert_eq!(split::<u8>(None), (None, None));
        assert_eq!(wanted("tcc 0.9\nzlib1g 1.2\nnginx 1.22\nnginx-common 1.22\n"), ["tcc 0.9", "nginx 1.22"]);
    }
}
