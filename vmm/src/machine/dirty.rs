//! KVM's log of the pages that the guest has written.

use kvm_bindings::{KVMIO, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::memory::{GuestRam, PAGE_SIZE, RamSlot};

/// The ioctl as kvm-ioctls has it, but into memory that is used again: the log is reset while the guest runs.
mod ioctl {
    vmm_sys_util::ioctl_iow_nr!(KVM_GET_DIRTY_LOG, super::KVMIO, 0x42, super::kvm_dirty_log);
}

/// Reads and resets the log, slot by slot.
#[derive(Debug)]
pub(super) struct DirtyLog {
    /// A bit a page, of the slot read last.
    bitmap: Vec<u64>,
}

/// Words of the bitmap of `slot`.
const fn words(slot: &RamSlot) -> usize {
    slot.size.div_ceil(PAGE_SIZE as u64 * 64) as usize
}

impl DirtyLog {
    /// A reader for the slots of `ram`.
    pub(super) fn new(ram: &GuestRam) -> Self {
        Self { bitmap: vec![0; ram.slots().map(|slot| words(&slot)).max().unwrap_or(0)] }
    }

    /// The pages of `slot` written since the last call, a bit each; forgets them.
    ///
    /// # Errors
    /// When KVM fails or does not log this slot.
    pub(super) fn take(&mut self, vm: &VmFd, slot: &RamSlot) -> Result<&[u64], kvm_ioctls::Error> {
        let bitmap = &mut self.bitmap[..words(slot)];
        let request = kvm_dirty_log {
            slot: slot.slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
        };
        // SAFETY: `vm` is a VM; KVM writes a bit for each page of its slot, rounded up to whole words, and the
        // bitmap is that long: KVM's slots were made from these very sizes.
        if unsafe { ioctl_with_ref(vm, ioctl::KVM_GET_DIRTY_LOG(), &request) } != 0 {
            return Err(kvm_ioctls::Error::last());
        }
        Ok(bitmap)
    }
}
