//! One thread, one core: a pair on one machine is measured as two hosts would be.

use anyhow::{Context, Result};

/// Pins the calling thread to a core, counted from zero.
///
/// # Errors
/// The machine has no such core, or this process may not use it.
pub(crate) fn to_core(core: usize) -> Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET ignores cores past the set's size.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set is valid and of the size told.
    let outcome = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if outcome == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error()).with_context(|| format!("cannot run on core {core} alone"))
}
