//! What a recorder needs of the outside: where inputs come from, and where the log and the outputs go.

use crate::machine::input::Input;
use crate::machine::output::Outputs;
use crate::machine::time::VirtualTime;

use super::batch::{Batch, Traffic};
use super::run::Run;
use super::stop_pace::Spent;
use super::trace::ExitRecord;

/// Where inputs come from. Implemented by the host: it has the clock and the threads.
pub trait Inputs {
    /// Reads the clock: the one place where host time comes in. Monotonic.
    fn now(&mut self) -> VirtualTime;
    /// Whether [`Inputs::front`] has something. Asked at each exit: one atomic load.
    fn pending(&mut self) -> bool;
    /// The next input, until [`Inputs::take`].
    fn front(&mut self) -> Option<Input<'_>>;
    /// Drops the front input.
    fn take(&mut self);
    /// CPU time that this thread has had, in nanoseconds. Tells a guest that computes from one that
    /// the host does not run.
    fn cpu_time(&mut self) -> u64;
    /// The same, with what of it passed in the kernel. Dearer to ask for.
    fn spent(&mut self) -> Spent;
    /// Sleeps until an input is pending, `until` has come, or the run is asked to leave. May return
    /// early.
    fn wait(&mut self, until: Option<VirtualTime>);
    /// Whether the loop should be left.
    fn leave(&mut self) -> bool;
}

/// Where the log goes, and the outputs that depend on it.
pub trait Log: Outputs {
    /// What can go wrong.
    type Error;
    /// Whether anything is logged at all.
    fn enabled(&self) -> bool;
    /// Whether an output waits for the log that somebody outside is waiting for (a packet, a disk
    /// request): the log is then flushed at once.
    fn urgent(&self) -> bool;
    /// Whether any output waits for the log.
    fn waiting(&self) -> bool;
    /// Takes a batch. Outputs made before this call depend on it. Returns the bytes put around it.
    ///
    /// # Errors
    /// When the log cannot be written any more.
    fn commit(&mut self, batch: &Batch) -> Result<usize, Self::Error>;
    /// Which batch the outputs made from now on wait for: the next one, or the last that was committed.
    fn wait_for_next(&mut self, _next: bool) {}
    /// Outputs made from now on are the guest's own doing: it has just left for them.
    fn kicked(&mut self) {}
    /// Whether the guest has made outputs that somebody outside waits for since the last call. What needs
    /// no further batch may go out now.
    fn made_outputs(&mut self) -> bool {
        false
    }
    /// Whether bytes of the log are dearer than time of the vCPU thread.
    fn scarce(&self) -> bool;
    /// The guest goes idle, or nothing is logged: what was held back for company may go out.
    fn idle(&mut self) {}
    /// Sees the run's numbers now and then, for status.
    fn observe(&mut self, _run: &Run, _traffic: &Traffic) {}
    /// Sees each exit, for a log that keeps them.
    ///
    /// # Errors
    /// As [`Log::commit`].
    fn exit(&mut self, _record: &ExitRecord) -> Result<(), Self::Error> {
        Ok(())
    }
}
