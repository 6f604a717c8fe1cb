// SPDX-License-Identifier: GPL-2.0-only

//! Exit histograms in debugfs: `tandem/PID-N` for the N-th vCPU that was ever traced, of process PID.
//!
//! The file is there from the first time that its vCPU is traced until the vCPU is let go, and may be read while it runs.

use core::sync::atomic::{AtomicU64, Ordering};

use kernel::debugfs::{Dir, File, Writer};
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{Arc, global_lock};

use crate::brain::histogram::Live;

global_lock! {
    // SAFETY: initialised in the module's init, before anything can take it.
    unsafe(uninit) static ROOT: Mutex<Option<Dir>> = None;
}

/// The directory of all files; it goes with this.
pub(crate) struct Root;

impl Root {
    /// Makes it.
    ///
    /// # Safety
    /// Once, and before any [`show`].
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller's word.
        unsafe { ROOT.init() };
        let root = Dir::new(c"tandem");
        *ROOT.lock() = Some(root);
        Self
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Statics are not dropped. Not with the lock held.
        let root = ROOT.lock().take();
        drop(root);
    }
}

/// What a file shows.
pub(crate) struct Shown(Arc<KVVec<Live>>);

impl Writer for Shown {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# exit reason, exits, cycles in all, exits by cycles")?;
        for kind in self.0.iter().map(Live::kind).filter(|kind| kind.count > 0) {
            writeln!(f, "{kind}")?;
        }
        Ok(())
    }
}

/// A file, until it is dropped.
pub(crate) type Trace = Pin<KBox<File<Shown>>>;

/// Shows the histograms of a vCPU of this process. Not with a lock held that `mmap` takes: a page fault while a
/// directory is listed takes the same locks in the other order.
pub(crate) fn show(kinds: Arc<KVVec<Live>>) -> Result<Trace> {
    static TRACED: AtomicU64 = AtomicU64::new(0);
    let root = ROOT.lock().clone().ok_or(ENODEV)?;
    let number = TRACED.fetch_add(1, Ordering::Relaxed);
    let name = CString::try_from_fmt(fmt!("{}-{number}", kernel::current!().pid()))?;
    KBox::pin_init(root.read_only_file(&name, Shown(kinds)), GFP_KERNEL)
}
