//! `tandem-bench peers`: the same guest and work on QEMU: with the same KVM unprotected, with COLO as a pair, and with its
//! instruction counting as recorder.

use anyhow::Result;
use tandem_tests::bed::Program;
use tandem_tests::linux::{self, Place};

mod colo;
mod icount;
mod qmp;

use crate::paper::{self, Args, Kind};

/// Measures, prints one line of JSON.
///
/// # Errors
/// Nothing runs a Linux guest here, or nothing can be set up.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (sources, cmdline) = paper::sources()?;
    let place = linux::place(Program::tandem()?.path())?;
    let mut peers = Vec::new();
    if place != Place::Emulated {
        eprintln!("QEMU records and replays the guest, in software");
        peers.push(icount::measure(&sources, &cmdline));
    }
    let colo_is_here = match place {
        Place::Here => true,
        // In one of the machines.
        Place::Emulated => paper::emulated::kind() == Some(Kind::Qemu),
        Place::VirtmeNg => false,
    };
    if colo_is_here {
        eprintln!("QEMU's COLO protects the guest");
        // Two turns; the other half of the time is for what comes after.
        peers.push(colo::measure(&sources, &cmdline, args.time_left() / 4));
    }
    paper::measure("peers", args, &[Kind::Alone, Kind::Qemu], peers)
}
