//! The machine's captured instructions: counted as points, drained into the log, fed from it.

use tandem_kmod_brain::abi::Pause;
use tandem_kmod_brain::ring::Entry;

use super::cpu::capture::{Capture, CaptureError, CaptureMode};
use super::cpu::image::CapturedState;
use super::vm::Machine;

impl Machine {
    /// Whether the kernel module captures this machine's instructions.
    #[must_use]
    pub const fn captures(&self) -> bool {
        self.capture.is_some()
    }

    /// How many instructions were captured since the last call.
    pub fn count_captured(&mut self) -> u64 {
        let served = self.capture.as_ref().map_or(0, Capture::served);
        served.wrapping_sub(std::mem::replace(&mut self.counted, served))
    }

    /// Digest of all captured instructions.
    #[must_use]
    pub fn captured_digest(&self) -> u64 {
        self.capture.as_ref().map_or(0, Capture::digest)
    }

    /// The virtual TSC that the guest has read last.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.captured_state().tsc
    }

    /// Takes the oldest value that was captured.
    ///
    /// # Errors
    /// When the module's memory is damaged.
    pub fn take_captured(&mut self) -> Result<Option<Entry>, CaptureError> {
        self.capture.as_mut().map_or(Ok(None), Capture::recorded)
    }

    /// Gives the module a value to replay. False: there is no room.
    ///
    /// # Errors
    /// When the module's memory is damaged.
    pub fn feed_captured(&mut self, entry: &Entry) -> Result<bool, CaptureError> {
        self.capture.as_mut().map_or(Ok(false), |capture| capture.feed(entry))
    }

    /// Lets the guest execute so many captured instructions before it is paused; `None`: any number.
    pub fn limit_captured(&self, more: Option<u64>) {
        if let Some(capture) = &self.capture {
            capture.set_limit(more.map_or(u64::MAX, |more| self.counted.saturating_add(more)));
        }
    }

    /// Why the machine is paused in front of a captured instruction.
    #[must_use]
    pub fn captured_pause(&self) -> Option<Pause> {
        self.capture.as_ref().and_then(Capture::pause)
    }

    /// Captured values come from the log from now on, and the module has none yet.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn replay_captured(&mut self) -> Result<(), CaptureError> {
        self.capture.as_mut().map_or(Ok(()), |capture| capture.set_mode(CaptureMode::Replay))
    }

    /// Captured values come from the virtual TSC from now on, which goes on from the last value.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn record_captured(&mut self) -> Result<(), CaptureError> {
        let tsc = self.tsc();
        self.capture.as_mut().map_or(Ok(()), |capture| {
            capture.set_mode(CaptureMode::Record)?;
            capture.set_clock(tsc)
        })
    }

    /// The state of captured instructions, for images and comparison.
    pub(super) fn captured_state(&self) -> CapturedState {
        self.capture.as_ref().map_or_else(CapturedState::default, |capture| CapturedState {
            tsc: self.tsc_before.max(capture.tsc()),
            tsc_aux: self.tsc_aux,
            digest: capture.digest(),
        })
    }

    /// Takes the state over from an image. What the module had to replay is dropped, and so is a pause that was
    /// asked for and has not come yet: what is injected from here on comes before the instruction, on every side
    /// that loads this state.
    pub(super) fn load_captured(&mut self, state: &CapturedState) -> Result<(), CaptureError> {
        self.tsc_before = state.tsc;
        self.set_tsc_aux(state.tsc_aux);
        if let Some(capture) = &mut self.capture {
            capture.set_digest(state.digest);
            capture.empty_rings()?;
        }
        Ok(())
    }

    /// Sets what RDTSCP puts into ECX.
    pub(super) fn set_tsc_aux(&mut self, aux: u64) {
        self.tsc_aux = aux;
        if let Some(capture) = &self.capture {
            capture.set_tsc_aux(aux);
        }
    }
}
