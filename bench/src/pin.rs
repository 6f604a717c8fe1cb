//! One thread, one core: a pair on one machine is measured as two hosts would be.

use std::io;
use std::marker::PhantomData;

use anyhow::{Context, Result};

/// The calling thread runs on one core until this is dropped; on it alone, too, what it starts meanwhile.
#[derive(Debug)]
#[must_use = "the thread is let go when this is dropped"]
pub(crate) struct Pinned {
    before: libc::cpu_set_t,
    /// Of the thread that made it.
    stays: PhantomData<*const ()>,
}

/// Pins the calling thread to a core, counted from zero.
///
/// # Errors
/// The machine has no such core, or this process may not use it.
pub(crate) fn to_core(core: usize) -> Result<Pinned> {
    let told = || format!("cannot run on core {core} alone");
    let before = affinity().with_context(told)?;
    let mut set = none();
    // SAFETY: CPU_SET ignores cores past the set's size.
    unsafe { libc::CPU_SET(core, &mut set) };
    set_affinity(&set).with_context(told)?;
    Ok(Pinned { before, stays: PhantomData })
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before. Without it the thread stays where it is.
        let _ = set_affinity(&self.before);
    }
}

const fn none() -> libc::cpu_set_t {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    unsafe { std::mem::zeroed() }
}

fn affinity() -> io::Result<libc::cpu_set_t> {
    let mut set = none();
    // SAFETY: the set is writable and of the size told.
    match unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } {
        0 => Ok(set),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the set is valid and of the size told.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const *set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(set: &libc::cpu_set_t) -> Vec<usize> {
        // SAFETY: CPU_ISSET looks at the set alone, and these cores are within it.
        (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, set) }).collect()
    }

    #[test]
    fn a_thread_is_on_one_core_until_it_is_let_go() {
        let before = cores(&affinity().unwrap());
        let pinned = to_core(before[0]).unwrap();
        assert_eq!(cores(&affinity().unwrap()), before[..1]);
        drop(pinned);
        assert_eq!(cores(&affinity().unwrap()), before);
        assert!(to_core(libc::CPU_SETSIZE as usize - 1).is_err());
    }
}
