//! KVM's log of the pages that the guest has written.
//!
//! A page that is protected costs the guest a fault when it writes there next, and is then in the log until it is
//! protected again. With `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` (Linux 5.1) reading the log protects nothing, so that
//! pages may be left writable: they stay in the log. Without it, reading protects all that is read.

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::memory::{GuestRam, PAGE_SIZE, RamSlot};

/// The ioctls on memory that is used again: the log is read while the guest runs.
mod ioctl {
    vmm_sys_util::ioctl_iow_nr!(KVM_GET_DIRTY_LOG, super::KVMIO, 0x42, super::kvm_dirty_log);
    vmm_sys_util::ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, super::KVMIO, 0xc0, super::kvm_clear_dirty_log);
}

/// Reads the log, and protects pages.
#[derive(Debug)]
pub(super) struct DirtyLog {
    slots: Vec<RamSlot>,
    /// A bit a page, slot after slot, each slot from a new word on.
    bitmap: Vec<u64>,
    /// Whether pages are protected by [`DirtyLog::protect`], not by reading.
    manual: bool,
}

/// Pages of `slot`.
const fn pages(slot: &RamSlot) -> u64 {
    slot.size / PAGE_SIZE as u64
}

/// Words of the bitmap of `slot`.
const fn words(slot: &RamSlot) -> usize {
    pages(slot).div_ceil(64) as usize
}

impl DirtyLog {
    /// A reader for the slots of `ram`, which `vm` has.
    ///
    /// # Errors
    /// When KVM refuses what it says it can do.
    pub(super) fn new(vm: &VmFd, ram: &GuestRam) -> Result<Self, kvm_ioctls::Error> {
        let able = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
        let manual = able & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as i32 != 0;
        if manual {
            let args = [KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into(), 0, 0, 0];
            let cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
            vm.enable_cap(&kvm_enable_cap { cap, args, ..Default::default() })?;
        }
        let slots: Vec<_> = ram.slots().collect();
        Ok(Self { bitmap: vec![0; slots.iter().map(words).sum()], slots, manual })
    }

    /// Reads the pages that were written since each was protected last.
    ///
    /// # Errors
    /// When KVM fails or does not log.
    pub(super) fn read(&mut self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let mut rest = self.bitmap.as_mut_slice();
        for slot in &self.slots {
            let (bitmap, others) = rest.split_at_mut(words(slot));
            rest = others;
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
        }
        Ok(())
    }

    /// How many pages were written since each was protected last, where that can be told without protecting them.
    ///
    /// # Errors
    /// When KVM fails or does not log.
    pub(super) fn count(&mut self, vm: &VmFd) -> Result<Option<usize>, kvm_ioctls::Error> {
        if !self.manual {
            return Ok(None);
        }
        self.read(vm)?;
        Ok(Some(self.bitmap.iter().map(|word| word.count_ones() as usize).sum()))
    }

    /// Numbers of the pages read last, rising.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        let mut words_read = self.bitmap.iter().copied();
        for slot in &self.slots {
            let first = slot.guest_address / PAGE_SIZE as u64;
            for (i, mut word) in words_read.by_ref().take(words(slot)).enumerate() {
                while word != 0 {
                    numbers.push(first + i as u64 * 64 + u64::from(word.trailing_zeros()));
                    word &= word - 1;
                }
            }
        }
        numbers
    }

    /// Lets `choose` reduce the pages read last, a bit each, to those that are to be protected, and protects them: they
    /// leave the log. Where KVM has protected all of them by itself, nobody is asked.
    ///
    /// # Errors
    /// When KVM fails.
    pub(super) fn protect(
        &mut self,
        vm: &VmFd,
        choose: impl FnOnce(&mut [u64]),
    ) -> Result<(), kvm_ioctls::Error> {
        if !self.manual {
            return Ok(());
        }
        choose(&mut self.bitmap);
        let mut rest = self.bitmap.as_mut_slice();
        for slot in &self.slots {
            let (bitmap, others) = rest.split_at_mut(words(slot));
            rest = others;
            if bitmap.iter().all(|word| *word == 0) {
                continue;
            }
            let request = kvm_clear_dirty_log {
                slot: slot.slot,
                // A slot has fewer than 2^31 pages (`KVM_MEM_MAX_NR_PAGES`).
                num_pages: pages(slot) as u32,
                first_page: 0,
                __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: bitmap.as_mut_ptr().cast(),
                },
            };
            // SAFETY: as above; KVM reads as many bits.
            if unsafe { ioctl_with_ref(vm, ioctl::KVM_CLEAR_DIRTY_LOG(), &request) } != 0 {
                return Err(kvm_ioctls::Error::last());
            }
        }
        Ok(())
    }
}
