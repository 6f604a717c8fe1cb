//! A page of registers that the guest reads without an exit.
//!
//! KVM shows it as memory that cannot be written: a write is an exit as before (KVM_MEM_READONLY of
//! Documentation/virt/kvm/api.rst). It changes only while the vCPU is out of the guest, at points.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::machine::memory::PAGE_SIZE;

/// A slot number that neither RAM nor the shadow's has.
const SLOT: u32 = 30;

/// What lies in a page, aligned as KVM wants it.
#[derive(Debug)]
#[repr(C, align(4096))]
struct Words([AtomicU64; PAGE_SIZE / 8]);

/// The page. Must outlive the VM.
#[derive(Debug)]
pub struct ClockPage {
    words: Box<Words>,
    address: u64,
    /// Whether the guest has it.
    mapped: bool,
    /// How many times it was given the guest.
    given: u64,
}

impl ClockPage {
    /// A page for `address`, guest physical, which the guest does not have yet.
    #[must_use]
    pub fn new(address: u64) -> Self {
        let words = Box::new(Words([const { AtomicU64::new(0) }; PAGE_SIZE / 8]));
        Self { words, address, mapped: false, given: 0 }
    }

    /// How many times the guest was given it.
    #[must_use]
    pub const fn given(&self) -> u64 {
        self.given
    }

    /// Before the guest is entered: it has the page with these `values`, each with its offset, a multiple of eight below the
    /// page's end; or, with `None`, it has no page.
    ///
    /// # Errors
    /// When KVM refuses the page.
    pub fn show(&mut self, vm: &VmFd, values: Option<&[(usize, u64)]>) -> Result<(), kvm_ioctls::Error> {
        for &(offset, value) in values.unwrap_or_default() {
            if let Some(word) = self.words.0.get(offset / 8) {
                // The guest reads it on this very CPU, later.
                word.store(value, Ordering::Relaxed);
            }
        }
        if values.is_some() != self.mapped {
            self.map(vm, values.is_some())?;
        }
        Ok(())
    }

    #[cold]
    fn map(&mut self, vm: &VmFd, wanted: bool) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            guest_phys_addr: self.address,
            memory_size: if wanted { PAGE_SIZE as u64 } else { 0 },
            userspace_addr: std::ptr::from_ref(&*self.words).addr() as u64,
            flags: KVM_MEM_READONLY,
        };
        // SAFETY: the page is this struct's own, of the size told, and outlives the VM (its owner's promise).
        unsafe { vm.set_user_memory_region(region) }?;
        self.mapped = wanted;
        self.given += u64::from(wanted);
        Ok(())
    }
}
