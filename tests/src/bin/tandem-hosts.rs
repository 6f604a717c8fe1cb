//! `tests/rdma/hosts`: one of the two machines of a pair whose log goes over RDMA.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tandem_tests::config::{Guest, RdmaLog};
use tandem_tests::hosts::{self, Shared};
use tandem_tests::linux;

/// One machine's part; started inside it by tests/rdma/hosts
#[derive(Debug, Parser)]
struct Args {
    /// Which
    part: Part,
    /// A directory that both machines see, at the same place
    shared: PathBuf,
    /// What outputs wait for
    #[arg(long, default_value = "read", value_parser = ["read", "placed"])]
    ack: String,
    /// What runs in the VM; Linux has a TSC if the kernel module is loaded
    #[arg(long, value_enum, default_value_t = Runs::Embedded)]
    guest: Runs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Runs {
    Embedded,
    Linux,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// Runs the VM, until the machine is ended
    Primary,
    /// Protects it, with the clients on the same machine
    Backup,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<bool> {
    let shared = Shared::new(args.shared);
    let Part::Backup = args.part else { return hosts::primary(&shared).map(|()| true) };
    let guest = match args.guest {
        Runs::Embedded => Guest::Embedded,
        Runs::Linux => linux::guest()?,
    };
    let seen = hosts::backup(&shared, guest, &RdmaLog { ack: args.ack, completion: "events".to_owned() })?;
    let report = &seen.report;
    writeln!(
        io::stdout(),
        "{} acknowledged, {} lost, {} wrong answers, {} connections reset; {:.1} s silent",
        report.acked,
        report.lost,
        report.violation_count,
        report.connections_lost,
        seen.outage.as_secs_f64()
    )?;
    let clocks = seen.clocks.map(|within| within.clocks());
    for (name, clock) in clocks.iter().flatten() {
        writeln!(io::stdout(), "{name}, {clock}")?;
    }
    let monotonic = clocks.iter().flatten().all(|(_, clock)| clock.readings > 1 && clock.back == 0);
    for violation in &report.violations {
        writeln!(io::stdout(), "{violation}")?;
    }
    if let Some(why) = &report.unreachable {
        writeln!(io::stdout(), "could not be read back: {why}")?;
    }
    Ok(report.clean() && report.connections_lost == 0 && report.acked > 0 && monotonic)
}
