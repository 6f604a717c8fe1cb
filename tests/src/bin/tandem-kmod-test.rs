//! The kernel module's tests, to be run where it is loaded: `tests/kmod/inside` does.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use kvm_ioctls::Kvm;
use tandem_tests::kmod::{misuse, storm, trials};

/// Try the kernel module
#[derive(Debug, Parser)]
struct Args {
    /// Only the trials whose name contains this
    filter: Option<String>,
    /// How long VMMs are killed, in seconds
    #[arg(long, default_value_t = 20)]
    storm: u64,
    /// Seed of the storm
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = std::io::stdout().lock();
    match run(&args, &mut out) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(out, "FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<u32> {
    let system = Kvm::new().context("cannot open /dev/kvm")?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut tell = |name: &str, begun: Instant, result: anyhow::Result<()>| -> anyhow::Result<()> {
        match result {
            Ok(()) => {
                passed += 1;
                writeln!(out, "ok {name} ({} ms)", begun.elapsed().as_millis())?;
            }
            Err(error) if error.is::<trials::Skipped>() => {
                skipped += 1;
                writeln!(out, "skipped {name}: {error}")?;
            }
            Err(error) => {
                failed += 1;
                writeln!(out, "FAILED {name}: {error:#}")?;
            }
        }
        Ok(out.flush()?)
    };
    let wanted = |name: &str| args.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    for (name, trial) in trials::ALL.iter().chain(misuse::ALL).filter(|(name, _)| wanted(name)) {
        let begun = Instant::now();
        tell(name, begun, trial(&system))?;
    }
    drop(system);
    let name = "eight VMMs at once, killed at random, leave nothing behind";
    if args.storm != 0 && wanted(name) {
        let begun = Instant::now();
        let result = storm::storm(8, Duration::from_secs(args.storm), args.seed);
        tell(name, begun, result.map(|_| ()))?;
    }
    writeln!(out, "kmod: {passed} passed, {failed} failed, {skipped} skipped")?;
    Ok(failed)
}
