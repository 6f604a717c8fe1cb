//! `tandem-bench peers`: the same guest and work on QEMU: with the same KVM unprotected, with its instruction counting as
//! recorder, and as a COLO pair.

use anyhow::Result;

use crate::paper::{self, Args, Kind};

/// Measures, prints one line of JSON.
///
/// # Errors
/// Nothing runs a Linux guest here, or nothing can be set up.
pub(crate) fn run(args: &Args) -> Result<()> {
    paper::measure("peers", args, &[Kind::Alone, Kind::Qemu], Vec::new)
}
