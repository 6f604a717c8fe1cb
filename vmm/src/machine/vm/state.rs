//! The machine's state as a whole: captured and loaded at forced stops, summed for comparison.

use super::{Exit, Machine, MachineError, kvm};
use crate::machine::cpu::image::{CapturedState, VcpuImage};
use crate::machine::cpu::shadow;
use crate::machine::cpu::vcpu::Entered;

impl Machine {
    /// Completes the last exit, so that the vCPU stands between two instructions.
    ///
    /// # Errors
    /// When KVM fails, or the instruction has a further exit.
    pub fn settle(&mut self) -> Result<(), MachineError> {
        if self.idle_read.is_some() {
            self.vcpu.answer_mmio([0; 8]);
        }
        match self.vcpu.complete()? {
            Entered::Interrupted => Ok(()),
            Entered::Exit(exit) => Err(MachineError::Unfinished(exit)),
            Entered::Paused => Err(MachineError::Unfinished(Exit::Captured)),
        }
    }

    /// Captures the vCPU, which stands between two instructions.
    ///
    /// # Errors
    /// When KVM fails.
    pub fn capture_vcpu(&mut self) -> Result<VcpuImage, MachineError> {
        self.settle()?;
        Ok(VcpuImage::capture(self.vcpu.fd(), self.captured_state())?)
    }

    /// Loads the vCPU's state, after [`Machine::settle`]. Flushes the guest's TLB.
    ///
    /// # Errors
    /// When KVM refuses it.
    pub fn load_vcpu(&mut self, image: &VcpuImage) -> Result<(), MachineError> {
        image.load(self.vcpu.fd())?;
        self.load_captured(&image.captured)?;
        // KVM refreshes what it says about interrupts only on the way out of KVM_RUN.
        self.settle()
    }

    /// Whether KVM keeps shadow page tables here.
    #[must_use]
    pub const fn shadow_paging(&self) -> bool {
        self.shadow_paging
    }

    /// Makes KVM forget its shadow of the guest's page tables, where it keeps one.
    ///
    /// # Errors
    /// When KVM refuses it.
    pub fn drop_shadow(&mut self) -> Result<(), MachineError> {
        let Some(slot) = self.ram.slots().next().filter(|_| self.shadow_paging) else { return Ok(()) };
        // SAFETY: guest RAM is mapped as long as `ram` lives, and begins at a page.
        unsafe { shadow::drop_shadow(&self.vm, slot.host_address) }.map_err(kvm("KVM_SET_USER_MEMORY_REGION"))
    }

    /// Numbers of the pages that the guest may have written since each was protected last. `choose` reduces them, a
    /// bit each, to those that are protected now (Linux 5.1 and later; others protect all).
    ///
    /// # Errors
    /// When KVM fails or dirty logging is off.
    pub fn take_dirty_pages(&mut self, choose: impl FnOnce(&mut [u64])) -> Result<Vec<u64>, MachineError> {
        self.dirty.read(&self.vm).map_err(kvm("KVM_GET_DIRTY_LOG"))?;
        let pages = self.dirty.numbers();
        self.dirty.protect(&self.vm, choose).map_err(kvm("KVM_CLEAR_DIRTY_LOG"))?;
        Ok(pages)
    }

    /// How many pages [`Machine::take_dirty_pages`] would give now; `None` where KVM cannot say without protecting them
    /// (before Linux 5.1).
    ///
    /// # Errors
    /// When KVM fails or dirty logging is off.
    pub fn dirty_pages(&mut self) -> Result<Option<usize>, MachineError> {
        self.dirty.count(&self.vm).map_err(kvm("KVM_GET_DIRTY_LOG"))
    }

    /// Forgets which pages were written so far, of those that `choose` leaves.
    ///
    /// # Errors
    /// When KVM fails or dirty logging is off.
    pub fn reset_dirty_log(&mut self, choose: impl FnOnce(&mut [u64])) -> Result<(), MachineError> {
        self.dirty.read(&self.vm).map_err(kvm("KVM_GET_DIRTY_LOG"))?;
        self.dirty.protect(&self.vm, choose).map_err(kvm("KVM_CLEAR_DIRTY_LOG"))
    }

    /// Sums of all state but memory, by name: the devices, and the vCPU's parts.
    ///
    /// # Errors
    /// When KVM fails.
    pub fn sums(&mut self) -> Result<Vec<(String, u64)>, MachineError> {
        let mut sums = self.board.sums();
        // A string instruction may turn up its next exit here; that one is the same on both sides.
        match self.settle() {
            Ok(()) | Err(MachineError::Unfinished(_)) => {}
            Err(error) => return Err(error),
        }
        let image = VcpuImage::capture(self.vcpu.fd(), self.captured_state())?;
        let CapturedState { tsc, tsc_aux, digest } = image.captured;
        for (name, value) in [("virtual TSC", tsc), ("TSC_AUX", tsc_aux), ("captured instructions", digest)] {
            sums.push((name.to_owned(), value));
        }
        let parts: [(&str, &[u8]); 5] = [
            ("vCPU registers", &image.regs),
            ("vCPU special registers", &image.sregs),
            ("vCPU debug registers", &image.debug),
            ("vCPU extended control registers", &image.xcrs),
            ("vCPU XSAVE area", &image.xsave),
        ];
        sums.extend(
            parts.iter().map(|(name, bytes)| ((*name).to_owned(), xxhash_rust::xxh3::xxh3_64(bytes))),
        );
        for (index, value) in &image.msrs {
            sums.push((format!("MSR {index:#x}"), *value));
        }
        Ok(sums)
    }
}
