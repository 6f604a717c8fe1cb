//! `make torture`: many pairs, one random fault each, a client that checks.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use tandem_tests::bed::{Bed, Program};
use tandem_tests::config::{Guest, Pace, RdmaLog, Spec};
use tandem_tests::random::fresh_seed;
use tandem_tests::standin::Misdeed;
use tandem_tests::torture::fault::Kind;
use tandem_tests::torture::{Plan, torture};
use tandem_tests::{lab, linux};
use tandem_vmm::host::shutdown::Shutdown;

/// Kill, freeze, cut off and starve protected pairs, one fault a run, under a client that checks every acknowledgement
///
/// Ends with one JSON line; status 0 only if its verdict is "ok".
#[derive(Debug, Parser)]
struct Args {
    /// Runs
    #[arg(long, default_value_t = 200)]
    runs: u64,
    /// Draw the same faults again; a failed run names its own
    #[arg(long)]
    seed: Option<u64>,
    /// Only this fault; may be given more than once
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Kind>,
    /// Heartbeats of a machine that does other things too: 20 ms, ten missed
    #[arg(long)]
    busy: bool,
    /// The log goes over RDMA, and outputs wait for this: soft RoCE between the hosts (module rdma_rxe), or the devices of --cards
    #[arg(long, value_name = "ACK", value_parser = ["read", "placed"], conflicts_with = "standin")]
    rdma: Option<String>,
    /// How a thread that receives over RDMA learns of what came
    #[arg(long, default_value = "events", value_parser = ["events", "adaptive", "busy"], requires = "rdma")]
    completion: String,
    /// The log crosses two cards of this machine, with a cable between them: they leave this machine's network meanwhile
    #[arg(long, value_name = "CARD", num_args = 2)]
    cards: Vec<String>,
    /// Keep the files of every run, not only of those that failed
    #[arg(long)]
    keep: bool,
    /// Torture the stand-in, a pair without a VM
    #[arg(long, hide = true)]
    standin: bool,
    /// What the stand-in does wrong
    #[arg(long, hide = true, requires = "standin")]
    misdeed: Option<Misdeed>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    if let Some(obstacle) = lab::obstacle() {
        anyhow::bail!("no lab can be built here: {obstacle}");
    }
    let program = if args.standin { Program::stand_in(args.misdeed)? } else { Program::tandem()? };
    let pace = match args.busy {
        _ if linux::is_inside() => Pace::EMULATED,
        true => Pace::BUSY,
        false => Pace::NATIVE,
    };
    let spec = Spec { name: "torture".to_owned(), guest: Guest::Embedded, pace };
    let mut bed = Bed::new("torture", program, spec, Shutdown::on_signals()?)?;
    if let [primary, backup] = &args.cards[..] {
        bed.lab.log_crosses([primary, backup])?;
    }
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let mut kinds = &Kind::ALL[..];
    if let Some(ack) = &args.rdma {
        bed.over_rdma(RdmaLog { ack: ack.clone(), completion: args.completion.clone() });
        // What a card brings along stays with it.
        kinds = if args.cards.is_empty() { &Kind::RDMA } else { &Kind::ALL };
    }
    let kinds = if args.fault.is_empty() { kinds } else { &args.fault };
    let mut out = io::stdout().lock();
    writeln!(out, "{} runs from seed {seed}", args.runs)?;
    if let Some(devices) = bed.rdma_devices() {
        writeln!(out, "the log goes over {}", devices.names(&bed.lab)?.join(" and "))?;
    }
    let summary =
        torture(&mut bed, &Plan { runs: args.runs, seed, kinds: kinds.to_vec(), keep: args.keep }, &mut out)?;
    serde_json::to_writer(&mut out, &summary)?;
    writeln!(out)?;
    Ok(summary.verdict == "ok")
}
