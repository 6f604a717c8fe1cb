//! `tandem-bench peers`: the same guest and work on QEMU: with the same KVM unprotected, with COLO as a pair, and with its
//! instruction counting as recorder.

use anyhow::Result;
use tandem_tests::bed::Program;
use tandem_tests::linux::{self, Place};

mod colo;
mod icount;
mod qmp;

use crate::paper::{self, Args, Kind};
use crate::report::Peer;

/// Measures, prints one line of JSON.
///
/// # Errors
/// Nothing runs a Linux guest here, or nothing can be set up.
pub(crate) fn run(args: &Args) -> Result<()> {
    let time = args.start();
    let (sources, cmdline) = paper::sources()?;
    let place = linux::place(Program::tandem()?.path())?;
    let icount = {
        let (sources, cmdline, patience) = (sources.clone(), cmdline.clone(), time.left() / 2);
        move || {
            eprintln!("QEMU records and replays the guest, in software");
            icount::measure(&sources, &cmdline, patience)
        }
    };
    let colo = || {
        eprintln!("QEMU's COLO protects the guest");
        // Two turns; the other half of the time is for what comes after.
        colo::measure(&sources, &cmdline, time.left() / 4)
    };
    let peers: Box<dyn FnOnce() -> Vec<Peer>> = match place {
        Place::Here => {
            let peers = vec![icount(), colo()];
            Box::new(move || peers)
        }
        // In one of the machines.
        Place::Emulated if paper::emulated::kind() == Some(Kind::Qemu) => {
            let peers = vec![colo()];
            Box::new(move || peers)
        }
        Place::Emulated => Box::new(Vec::new),
        // The machines count: they do not mind company, and have one core of this machine's to themselves.
        Place::VirtmeNg => {
            let meanwhile = std::thread::spawn(icount);
            Box::new(move || vec![meanwhile.join().unwrap_or_else(|_| icount::lost("its thread panicked"))])
        }
    };
    paper::measure("peers", args, time, &[Kind::Alone, Kind::Qemu, Kind::SameClock], peers)
}
