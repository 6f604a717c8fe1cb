//! `tandem-bench peers`: the same guest and work on QEMU: with the same KVM unprotected, and with its instruction counting
//! as recorder.

use anyhow::{Context, Result};

mod icount;

use crate::paper::{self, Args, Kind};
use crate::report::Peer;
use crate::report::host::qemu_version;

/// What was measured before the run went on in virtme-ng, as JSON.
const BEFORE: &str = "TANDEM_BENCH_PEERS";

/// Measures, prints one line of JSON.
///
/// # Errors
/// Nothing runs a Linux guest here, or nothing can be set up.
pub(crate) fn run(args: &Args) -> Result<()> {
    let peers = match std::env::var(BEFORE) {
        Ok(text) => serde_json::from_str(&text).context("what the peers did is lost")?,
        Err(_) => {
            let (sources, cmdline) = paper::sources()?;
            eprintln!("QEMU records and replays the guest, in software");
            let peers = vec![icount::measure(&sources, &cmdline), colo()];
            // SAFETY: this process has no other thread yet.
            unsafe { std::env::set_var(BEFORE, serde_json::to_string(&peers)?) };
            peers
        }
    };
    paper::measure("peers", args, &[Kind::Alone, Kind::Qemu], peers)
}

/// COLO is not measured.
fn colo() -> Peer {
    Peer {
        name: "qemu-colo".to_owned(),
        version: qemu_version().unwrap_or_else(|| "no QEMU".to_owned()),
        figures: std::collections::BTreeMap::new(),
        reason: Some(
            "not tried yet: this QEMU has colo-compare and the filters, but tandem-bench does not set up its quorum disks, \
             its four channels and its QMP dialogue"
                .to_owned(),
        ),
    }
}
