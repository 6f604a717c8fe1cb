//! The command line: every command, every flag, and the text of `--help`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

const EXIT_STATUS: &str = "\
Exit status:
  0  done; for check: the guests asked about can run here
  1  failed; the reason is on standard error
  2  the command line is wrong
  3  replay found that the run diverged from its log";

const ABOUT: &str = "\
Tandem keeps a virtual machine running when the host under it dies.

Two hosts run the same VM in lockstep: the primary logs every input that is not a function of the past, \
the backup replays it. No network packet leaves the primary before the backup holds the log that led to \
it, so nothing that a client was told is ever lost.";

const START_HERE: &str = "\
Start here:
  tandem check                          can this host run it? one line per item, with the remedy
  tandem run vm.toml                    run a VM alone
  tandem record vm.toml --log run.log   run it and write the log
  tandem replay vm.toml run.log --verify
                                        run it again from the log and compare every exit

A protected pair, the same config file on both hosts:
  host B$ tandem backup vm.toml
  host A$ tandem primary vm.toml
  host A$ tandem status /run/tandem/demo.sock

`tandem help COMMAND` explains a command; `tandem man --dir DIR` writes man pages.";

/// The `tandem` command line.
#[derive(Debug, Parser)]
#[command(
    name = "tandem",
    version,
    about = "Fault tolerance for KVM virtual machines",
    long_about = ABOUT,
    after_help = "Start with `tandem check`; `tandem --help` says more.",
    after_long_help = format!("{START_HERE}\n\n{EXIT_STATUS}"),
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// How much is told on standard error.
    #[command(flatten)]
    pub logging: LoggingArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How much is told on standard error, and in which form.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingArgs {
    /// Tell more on standard error: -v for decisions, -vv for every event. RUST_LOG overrides both
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Tell only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// The form of what is told
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a VM alone, without a backup
    #[command(after_long_help = "\
Example:
  tandem run vm.toml

Next: `tandem record` to be able to repeat a run, `tandem backup` and `tandem primary` to protect one.")]
    Run(VmArgs),
    /// Run a VM alone and write the log that repeats it
    #[command(after_long_help = "\
Examples:
  tandem record vm.toml --log run.log
  tandem record vm.toml --log run.log --stop-after 30
  tandem record vm.toml --log run.log --exits 100000

Next: `tandem replay vm.toml run.log --verify`.")]
    Record(RecordArgs),
    /// Run a VM again from its log, at full speed
    #[command(
        allow_missing_positional = true,
        after_long_help = "\
Examples:
  tandem replay vm.toml run.log
  tandem replay vm.toml run.log --verify

With --verify every deterministic exit and the state at the end are compared with the log. On the first \
difference the command says where and what, and ends with status 3."
    )]
    Replay(ReplayArgs),
    /// Run a VM as the primary of a protected pair
    #[command(after_long_help = "\
The primary runs the VM, logs its inputs to the backup, and lets an output go only when the backup has \
acknowledged the log before it. When the backup dies the primary asks the arbiter and runs on alone.

Start the backup first: `tandem backup vm.toml` on the other host, with the same config file.

Next: `tandem status SOCKET`, `tandem failover SOCKET`.")]
    Primary(VmArgs),
    /// Run a VM as the backup of a protected pair
    #[command(after_long_help = "\
The backup waits for its primary on [pair] listen, replays the log, and drops the outputs. When the \
primary dies the backup asks the arbiter, replays what it has received to the end, and goes live.

Next: `tandem primary vm.toml` on the other host, with the same config file.")]
    Backup(VmArgs),
    /// Show a protected pair on this machine: load, a killed primary, nothing lost
    #[command(after_long_help = "\
Ends with one JSON line; exit status 0 only if its verdict is \"ok\". `make demo` builds first.")]
    Demo(DemoArgs),
    /// Look whether this host can run Tandem, by trying
    #[command(after_long_help = "\
Runs tiny guests on /dev/kvm and tries what Tandem needs of the host, instead of trusting flags. One \
line per item:
  ok    it works
  note  not needed for every guest, or slower than it could be; with the remedy
  FAIL  it is needed and missing; with the remedy

Without CONFIG the question is whether the embedded guest can run; with CONFIG, whether that VM can: its \
kernel, its taps, its arbiter.

Examples:
  tandem check
  tandem check vm.toml --json")]
    Check(CheckArgs),
    /// Ask a running side for its state
    #[command(after_long_help = "\
Shows role, generation, lag, log rate by kind of entry, output delay, forced stops, exits by reason and \
the last digest.

Examples:
  tandem status /run/tandem/demo.sock
  tandem status vm.toml --json        the [control] socket of the config")]
    Status(StatusArgs),
    /// Hand the VM over to the other side deliberately
    #[command(after_long_help = "\
Ask the primary, or the backup, which passes it on. The backup replays to the end of the log and goes live; the primary halts.

Example:
  tandem failover /run/tandem/demo.sock")]
    Failover(FailoverArgs),
    /// Make, show or claim an arbiter
    #[command(after_long_help = "\
The arbiter is a file, block device or directory that both hosts reach. When the sides lose sight of each \
other, the first to claim the generation there lives and the other halts.

Make it once, before either side runs:
  tandem arbiter init vm.toml
  tandem arbiter show vm.toml")]
    Arbiter {
        /// What to do with it.
        #[command(subcommand)]
        action: ArbiterAction,
    },
    /// Print shell completions
    #[command(after_long_help = "\
Examples:
  tandem completions bash > /etc/bash_completion.d/tandem
  tandem completions zsh  > /usr/local/share/zsh/site-functions/_tandem
  tandem completions fish > ~/.config/fish/completions/tandem.fish")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the man page, or write the pages of all commands
    #[command(after_long_help = "\
Examples:
  tandem man | man -l -
  tandem man --dir /usr/local/share/man/man1")]
    Man {
        /// Write tandem.1, tandem-run.1 and so on into this directory, which is made if it is missing
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// A VM and what one side changes of its config.
#[derive(Clone, Debug, Args)]
pub struct VmArgs {
    /// The VM's config file, TOML
    #[arg(value_name = "CONFIG", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// This side's changes.
    #[command(flatten)]
    pub overrides: Overrides,
}

/// What one side changes of a config that both sides share.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Overrides for this side")]
pub struct Overrides {
    /// Use this control socket instead of the one in `[control]`
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub control: Option<PathBuf>,
    /// Use this tap instead of the one in `[[net]]`; give it again for the second card, and so on
    #[arg(long, value_name = "NAME")]
    pub tap: Vec<String>,
}

/// `tandem record`.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Write the log here; an existing file is replaced
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub log: PathBuf,
    /// Stop after this many seconds; a fraction is allowed
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "exits")]
    pub stop_after: Option<Duration>,
    /// Stop after this many deterministic exits
    #[arg(long, value_name = "N")]
    pub exits: Option<u64>,
}

/// `tandem replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// The config the log was recorded with; without it, the file that the log names
    #[arg(value_name = "CONFIG", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The log
    #[arg(value_name = "LOG", required = true, value_hint = ValueHint::FilePath)]
    pub log: PathBuf,
    /// Compare every deterministic exit and the final state with the log
    #[arg(long)]
    pub verify: bool,
}

/// `tandem demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// With the Linux guest instead of the embedded one
    #[arg(long)]
    pub linux: bool,
}

/// `tandem check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Check for this VM too: its kernel, taps, arbiter, addresses
    #[arg(value_name = "CONFIG", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `tandem status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// The side's control socket, or a config file that names it
    #[arg(value_name = "SOCKET", value_hint = ValueHint::AnyPath)]
    pub socket: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `tandem failover`.
#[derive(Clone, Debug, Args)]
pub struct FailoverArgs {
    /// The side's control socket, or a config file that names it
    #[arg(value_name = "SOCKET", value_hint = ValueHint::AnyPath)]
    pub socket: PathBuf,
}

/// `tandem arbiter`.
#[derive(Clone, Debug, Subcommand)]
pub enum ArbiterAction {
    /// Make an arbiter: once for each VM, before either side runs
    #[command(after_long_help = "\
Examples:
  tandem arbiter init vm.toml
  tandem arbiter init /dev/disk/by-id/scsi-3600 --name demo
  tandem arbiter init /mnt/nfs/demo-arbiter --name demo       a directory: claims by link(2)")]
    Init {
        /// Which.
        #[command(flatten)]
        target: ArbiterTarget,
        /// Erase the arbiter, or other data, that is there; never while a side runs
        #[arg(long)]
        overwrite: bool,
        /// Bytes in a sector, when another host's device has larger ones; not for a directory
        #[arg(long, value_name = "BYTES", value_parser = ["512", "4096"])]
        sector_size: Option<String>,
        /// How many generations it remembers; not for a directory
        #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=256))]
        generations: u32,
    },
    /// Show whose it is and who won which generation
    Show {
        /// Which.
        #[command(flatten)]
        target: ArbiterTarget,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Claim a generation by hand, as a side would
    #[command(after_long_help = "\
Ends with 0 if the claim won. A claim that wins by hand fences that generation: both sides, when they \
claim it, lose and halt. Use it only when neither side is to run on.

Example:
  tandem arbiter claim vm.toml --side backup --generation 4")]
    Claim {
        /// Which.
        #[command(flatten)]
        target: ArbiterTarget,
        /// The generation
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        generation: u64,
        /// The side to claim for
        #[arg(long, value_parser = ["primary", "backup"])]
        side: String,
        /// Claim again with the token of an earlier claim, 32 hex digits; without it a new one is drawn
        #[arg(long, value_name = "TOKEN")]
        token: Option<String>,
        /// While the arbiter cannot be reached, wait and try again instead of failing
        #[arg(long)]
        wait: bool,
    },
}

/// An arbiter.
#[derive(Clone, Debug, Args)]
pub struct ArbiterTarget {
    /// The arbiter's file, block device or directory; or a config file (*.toml) that names it
    #[arg(value_name = "ARBITER", value_hint = ValueHint::AnyPath)]
    pub arbiter: PathBuf,
    /// The VM's name, where ARBITER is not a config file
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// Seconds with an optional fraction, 1 ms to 10 years.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if (0.001..=315_360_000.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("out of range: 0.001 to 315360000".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn replay_takes_a_log_with_or_without_a_config() {
        let Command::Replay(args) = parse("tandem replay run.log --verify").unwrap().command else {
            panic!()
        };
        assert_eq!((args.config, args.log, args.verify), (None, "run.log".into(), true));
        let Command::Replay(args) = parse("tandem replay vm.toml run.log").unwrap().command else { panic!() };
        assert_eq!((args.config, args.log, args.verify), (Some("vm.toml".into()), "run.log".into(), false));
        assert!(parse("tandem replay").is_err());
    }

    #[test]
    fn record_stops_by_time_or_by_exits_not_both() {
        let Command::Record(args) = parse("tandem record vm.toml --log f --stop-after 0.5").unwrap().command
        else {
            panic!()
        };
        assert_eq!((args.stop_after, args.exits), (Some(Duration::from_millis(500)), None));
        assert!(parse("tandem record vm.toml --log f --stop-after 1 --exits 2").is_err());
        for wrong in ["-1", "0", "nan", "inf", "1e300", "soon"] {
            assert!(
                parse(&format!("tandem record vm.toml --log f --stop-after={wrong}")).is_err(),
                "{wrong}"
            );
        }
        assert!(parse("tandem record vm.toml").is_err(), "a log is needed");
    }

    #[test]
    fn logging_flags_stand_before_or_after_the_command() {
        assert_eq!(parse("tandem -vv check").unwrap().logging.verbose, 2);
        let after = parse("tandem check -v --log-format json").unwrap().logging;
        assert_eq!((after.verbose, after.log_format), (1, LogFormat::Json));
        assert!(parse("tandem -q -v check").is_err());
    }
}
