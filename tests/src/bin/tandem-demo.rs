//! `make demo` and `make demo-linux`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, ValueEnum};
use tandem_tests::bed::{Bed, Program};
use tandem_tests::config::{Guest, Pace, Spec};
use tandem_tests::demo::{Plan, Story, Verdict, demo};
use tandem_tests::linux::{self, Place, Time};
use tandem_tests::{lab, redis_benchmark};
use tandem_vmm::host::shutdown::Shutdown;

/// In virtme-ng the whole demonstration, its boots included, takes minutes.
const EMULATED_SECONDS: u64 = 1200;

/// Lines of each log told when it did not work.
const LAST_WORDS: usize = 15;

/// Show a protected pair on this machine: what it costs, and that nothing is lost when the primary is killed
///
/// Ends with one JSON line; status 0 only if its verdict is "ok".
#[derive(Debug, Parser)]
struct Args {
    /// What runs in the VM
    #[arg(long, value_enum, default_value_t = Which::Embedded)]
    guest: Which,
    /// Only the failure, not what protection costs
    #[arg(long)]
    failover_only: bool,
    /// With the Linux guest: its Redis keeps its data on a disk, from which the VM is started anew in the end
    #[arg(long)]
    disk: bool,
    /// Show the stand-in, a pair without a VM
    #[arg(long, hide = true)]
    standin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// The Redis server that is linked into tandem
    Embedded,
    /// Linux with redis-server
    Linux,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut verdict = Verdict::new(if args.guest == Which::Linux { "linux" } else { "embedded" });
    let mut out = io::stdout();
    if let Err(error) = run(&args, &mut verdict) {
        let why = format!("{error:#}");
        let _ = writeln!(out, "It did not work: {why}");
        // What a side said last is in there too, line by line.
        verdict.verdict = why.lines().next().unwrap_or_default().to_owned();
    }
    let ok = verdict.verdict == "ok";
    let line = serde_json::to_string(&verdict).unwrap_or_default();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) if ok => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn run(args: &Args, verdict: &mut Verdict) -> anyhow::Result<()> {
    if let Some(obstacle) = lab::obstacle() {
        bail!("no lab can be built here: {obstacle}");
    }
    if !redis_benchmark::is_installed() {
        bail!("redis-benchmark is missing: install redis-tools");
    }
    let program = if args.standin { Program::stand_in(None)? } else { Program::tandem()? };
    let (guest, pace) = match args.guest {
        Which::Embedded => (Guest::Embedded, Pace::NATIVE),
        Which::Linux => {
            match linux::place(program.path())? {
                Place::Here => (linux::guest()?, Pace::NATIVE),
                Place::Emulated => (linux::guest()?, Pace::EMULATED),
                Place::VirtmeNg => {
                    let say = Story::new(io::stdout(), true);
                    say.line("This machine's KVM does not run Linux guests (tandem check says why): the same inside")?;
                    say.line("virtme-ng, in software emulation. That takes minutes. It boots first …")?;
                    return Err(linux::go_on_in_virtme_ng(program.path(), Time::Real, EMULATED_SECONDS));
                }
            }
        }
    };
    let say = Story::new(io::stdout(), pace.is_emulated());
    let spec = Spec { name: "demo".to_owned(), guest, pace };
    let mut bed = Bed::new("demo", program, spec, Shutdown::on_signals()?)?;
    let shown = demo(&mut bed, Plan { cost: !args.failover_only, disk: args.disk }, &say, verdict);
    if shown.is_err() || verdict.verdict != "ok" {
        // Inside virtme-ng the files go away with the machine.
        say.line(bed.last_words(LAST_WORDS).trim_end())?;
        say.line(&format!("   logs: {}", bed.keep().display()))?;
    }
    shown
}
