//! KVM's shadow of the guest's page tables.
//!
//! Without two-dimensional paging KVM runs the guest on page tables of its own, and notices what the guest
//! writes to its. What this process writes there KVM does not notice: the shadow then has to go as a whole.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use crate::machine::memory::PAGE_SIZE;

/// A slot number that no RAM has.
const SLOT: u32 = 31;
/// A page that is neither RAM nor a device, below the end of 4 GiB.
const ADDRESS: u64 = 0xfffc_0000;

/// Makes KVM forget all shadow page tables of `vm`. Costs a page fault for each page that the guest touches next.
///
/// There is no call for it. But KVM does this whenever a memory slot goes away (`KVM_X86_QUIRK_SLOT_ZAP_ALL` of
/// Documentation/virt/kvm/api.rst, on by default and so since the first KVM), so one comes and goes here. The vCPU
/// does not run meanwhile. `page` is the address of any mapped page of this process.
///
/// # Errors
/// When KVM refuses the slot.
///
/// # Safety
/// `page` must be mapped and page-aligned.
pub unsafe fn drop_shadow(vm: &VmFd, page: u64) -> Result<(), kvm_ioctls::Error> {
    for memory_size in [PAGE_SIZE as u64, 0] {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            guest_phys_addr: ADDRESS,
            memory_size,
            userspace_addr: page,
            flags: 0,
        };
        // SAFETY: the caller's promise; the vCPU cannot run while this thread is here.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}
