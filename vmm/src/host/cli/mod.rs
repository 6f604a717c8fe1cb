//! The `tandem` command: from the command line to the part that does it.
//!
//! Each command has its arguments in `args` and one function here, which reads the config, applies
//! what the flags override, and calls the part.

mod arbiter;
pub mod args;
mod logging;
mod outcome;
mod pages;
mod solo;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use anyhow::Context;
use clap::Parser;

pub use outcome::Outcome;

use self::args::{CheckArgs, Cli, Command, DemoArgs, FailoverArgs, Overrides, StatusArgs, VmArgs};
use super::check;
use super::config::Config;
use super::control::{Client, Pretty};
use super::pair::{self, PairEnded, PairError};
use super::shutdown::Shutdown;
use crate::role::action::HaltReason;

/// Runs the command that the process was started with. Exit status: 0 done, 1 failed, 2 wrong command
/// line, 3 divergence found.
#[must_use]
pub fn main() -> ExitCode {
    // `check` runs this program again for each of its probes; that is no command for people.
    let mut args = std::env::args().skip(1);
    let done = if args.next().as_deref() == Some(check::INTERNAL_PROBE) {
        print(|out| check::answer_probe(&args.next().unwrap_or_default(), out))
    } else {
        let cli = Cli::parse();
        logging::set_up(&cli.logging);
        dispatch(cli.command)
    };
    match done {
        Ok(outcome) => outcome.into(),
        Err(error) if outcome::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when standard error is closed too.
            let _ = writeln!(io::stderr(), "{}", outcome::Chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Run(args) => solo::run(&args),
        Command::Record(args) => solo::record(&args),
        Command::Replay(args) => solo::again(&args),
        Command::Primary(args) => side(pair::primary(&load(&args)?, &Shutdown::on_signals()?)),
        Command::Backup(args) => side(pair::backup(&load(&args)?, &Shutdown::on_signals()?)),
        Command::Demo(args) => demo(&args),
        Command::Check(args) => check(&args),
        Command::Status(args) => status(&args),
        Command::Failover(args) => failover(&args),
        Command::Arbiter { action } => arbiter::act(&action),
        Command::Completions { shell } => print(|out| pages::completions(shell, out)),
        Command::Man { dir: Some(dir) } => pages::man_pages(&dir).map(|()| Outcome::Done),
        Command::Man { dir: None } => print(|out| pages::man(out)),
    }
}

/// How a side of a pair ended.
fn side(ended: Result<PairEnded, PairError>) -> anyhow::Result<Outcome> {
    let reason = match ended {
        Ok(PairEnded::Halted(reason)) => reason,
        Ok(PairEnded::Failed) => anyhow::bail!("the machine cannot go on here"),
        Err(PairError::Cancelled) => return Ok(Outcome::Done),
        Err(error) => return Err(error.into()),
    };
    match reason {
        HaltReason::Ended | HaltReason::Left => Ok(Outcome::Done),
        HaltReason::HandedOver { generation } => {
            tracing::info!(generation, "handed over");
            Ok(Outcome::Done)
        }
        HaltReason::Lost { generation } => {
            anyhow::bail!("the other side has taken over (generation {generation}); this one stopped")
        }
        HaltReason::Refused { generation, claimed } => anyhow::bail!(
            "generation {claimed} is claimed already, so generation {generation} must not start: the VM may run on \
             the other host. If it runs nowhere, `tandem arbiter init --overwrite` lets it start again"
        ),
    }
}

/// The config of a VM with this side's changes.
fn load(args: &VmArgs) -> anyhow::Result<Config> {
    let mut config = Config::load(&args.config)?;
    let Overrides { control, tap } = &args.overrides;
    config.override_taps(tap)?;
    if let Some(path) = control {
        config.control_socket = Some(path.clone());
    }
    Ok(config)
}

/// The demonstration is a program of its own, built beside this one: it needs a client and a lab.
fn demo(args: &DemoArgs) -> anyhow::Result<Outcome> {
    let this = std::env::current_exe().context("cannot find the tandem executable")?;
    let program = this.with_file_name("tandem-demo");
    let mut command = process::Command::new(&program);
    if args.linux {
        command.args(["--guest", "linux"]);
    }
    let status = command.status().with_context(|| {
        format!("cannot run {}; `make demo` in Tandem's source builds and runs it", program.display())
    })?;
    Ok(if status.success() { Outcome::Done } else { Outcome::Failed })
}

fn check(args: &CheckArgs) -> anyhow::Result<Outcome> {
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let this =
        std::env::current_exe().context("cannot find the tandem executable, which check runs again")?;
    let report = check::look_at_host(config.as_ref(), &this);
    print(|out| if args.json { json_line(out, &report) } else { Ok(write!(out, "{report}")?) })?;
    Ok(if report.ok() { Outcome::Done } else { Outcome::Failed })
}

fn status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let status = Client::connect(&control_socket(&args.socket)?)?.status()?;
    print(|out| if args.json { json_line(out, &status) } else { Ok(write!(out, "{}", Pretty(&status))?) })
}

fn failover(args: &FailoverArgs) -> anyhow::Result<Outcome> {
    let answer = Client::connect(&control_socket(&args.socket)?)?.failover()?;
    print(|out| Ok(writeln!(out, "{answer}")?))
}

/// The socket itself, or the one that a config file names.
fn control_socket(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_file() {
        return Ok(path.to_owned());
    }
    let config = Config::read(path)?;
    config
        .control_socket
        .with_context(|| format!("{} has no [control] socket; give the socket's path", path.display()))
}

fn json_line(out: &mut dyn Write, value: &impl serde::Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn print(write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<Outcome> {
    let mut out = io::stdout().lock();
    write(&mut out)?;
    out.flush()?;
    Ok(Outcome::Done)
}
