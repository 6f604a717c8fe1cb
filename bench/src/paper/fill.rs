//! What keeps the counted CPUs of `in-vng --counted-hosts` busy.
//!
//! Their clock is the count of instructions that they have executed together, and they take turns. While all are busy, each has its
//! share: processors of a steady speed, whatever else this machine does. With one of them idle, the others would have its
//! share too, and be quicker. So there is something to do on all of them at all times, at the lowest priority that there is.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::pin;

/// Until it is dropped.
#[derive(Debug)]
pub(crate) struct Fill {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Fill {
    /// Begins.
    ///
    /// # Errors
    /// The machine does not say how many CPUs it has.
    pub(crate) fn start() -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..std::thread::available_parallelism()?.get()).map(|core| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || fill(core, &over))
        });
        Ok(Self { threads: threads.collect(), over })
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Ok(Err(error)) = thread.join() {
                eprintln!("a CPU was not kept busy: {error:#}");
            }
        }
    }
}

fn fill(core: usize, over: &AtomicBool) -> Result<()> {
    let _pinned = pin::to_core(core)?;
    only_when_idle().context("cannot run at the lowest priority")?;
    let mut turns = 0_u64;
    // No pause instruction: an emulated CPU gives the rest of its turn away by it.
    while !over.load(Ordering::Relaxed) {
        for _ in 0..10_000 {
            turns = black_box(turns).wrapping_add(1);
        }
    }
    Ok(())
}

/// The calling thread runs when its core has nothing else to do. The kernel counts its time as nice.
fn only_when_idle() -> io::Result<()> {
    const NICEST: libc::c_int = 19;
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: a valid parameter, for the calling thread.
    let idle = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) };
    // SAFETY: takes no pointers.
    let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) };
    if idle == 0 && nice == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
