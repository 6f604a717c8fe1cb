//! `tandem-bench peers`: the same guest and work on QEMU: with the same KVM unprotected, with COLO as a pair, and with its
//! instruction counting as recorder.

use anyhow::{Context, Result};
use tandem_tests::bed::Program;
use tandem_tests::linux::{self, Place};

mod colo;
mod icount;
mod qmp;

use crate::paper::{self, Args, Kind};
use crate::report::Peer;

/// What was measured before the run went on in virtme-ng, as JSON.
const BEFORE: &str = "TANDEM_BENCH_PEERS";

/// Measures, prints one line of JSON.
///
/// # Errors
/// Nothing runs a Linux guest here, or nothing can be set up.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (sources, cmdline) = paper::sources()?;
    let mut peers: Vec<Peer> = match std::env::var(BEFORE) {
        Ok(text) => serde_json::from_str(&text).context("what the peers did is lost")?,
        Err(_) => {
            eprintln!("QEMU records and replays the guest, in software");
            vec![icount::measure(&sources, &cmdline)]
        }
    };
    if linux::place(Program::tandem()?.path())? == Place::VirtmeNg {
        // SAFETY: this process has no other thread yet.
        unsafe { std::env::set_var(BEFORE, serde_json::to_string(&peers)?) };
    } else {
        eprintln!("QEMU's COLO protects the guest");
        // Two turns; the other half of the time is for what comes after.
        peers.push(colo::measure(&sources, &cmdline, args.time_left() / 4));
    }
    paper::measure("peers", args, &[Kind::Alone, Kind::Qemu], peers)
}
