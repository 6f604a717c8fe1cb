// SPDX-License-Identifier: GPL-2.0-only

//! The C side as Rust sees it: shim.h.

use core::marker::{PhantomData, PhantomPinned};
use core::ptr;

use kernel::ffi::{c_char, c_int, c_ulong, c_void};

use crate::brain::trap::Registers;

/// `struct kvm_vcpu`, of which Rust knows only the address.
#[repr(C)]
pub(crate) struct KvmVcpu {
    private: [u8; 0],
    marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `struct file`, likewise.
#[repr(C)]
pub(crate) struct KernelFile {
    private: [u8; 0],
    marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `struct tandem_exit`.
#[repr(C)]
pub(crate) struct Exit {
    pub(crate) reason: u32,
    pub(crate) trap: u32,
    pub(crate) rip: u64,
    pub(crate) flags: u64,
    pub(crate) destination: u8,
    pub(crate) size: u8,
    pub(crate) registers: *mut Registers,
}

impl Default for Exit {
    fn default() -> Self {
        Self { reason: 0, trap: u32::MAX, rip: 0, flags: 0, destination: 0, size: 0, registers: ptr::null_mut() }
    }
}

/// `struct tandem_hardware`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Hardware {
    vmcs: u64,
    traps: u32,
    reserved: u32,
    wanted: [u32; 2],
    added: [u32; 2],
}

/// `struct tandem_isa`.
#[repr(C)]
pub(crate) struct Isa {
    pub(crate) module: *const c_char,
    pub(crate) number: u32,
    traps: unsafe extern "C" fn() -> u32,
    pub(crate) layout_fits: unsafe extern "C" fn(*mut KvmVcpu) -> bool,
    pub(crate) arm: unsafe extern "C" fn(*mut KvmVcpu, u32, *mut Hardware),
    pub(crate) disarm_idle: unsafe extern "C" fn(*mut KvmVcpu, *mut Hardware),
    pub(crate) decode: unsafe extern "C" fn(*mut KvmVcpu, *mut Exit),
    pub(crate) step_over: unsafe extern "C" fn(*mut KvmVcpu, *const Exit),
    pub(crate) ignore: unsafe extern "C" fn(*mut KvmVcpu),
}

impl Isa {
    /// Traps that this CPU can intercept.
    pub(crate) fn traps(&self) -> u32 {
        // SAFETY: it has no conditions.
        unsafe { (self.traps)() }
    }
}

// SAFETY: two constants of the C side, never written.
unsafe impl Sync for Isa {}

// SAFETY: the declarations are those of shim.h; the safe ones have no conditions.
unsafe extern "C" {
    pub(crate) unsafe fn tandem_find_isa() -> *const Isa;
    pub(crate) safe fn tandem_layout_known() -> bool;
    pub(crate) unsafe fn tandem_attach() -> c_int;
    pub(crate) unsafe fn tandem_detach();
    pub(crate) unsafe fn tandem_get_vcpu(isa: *const Isa, fd: c_int, vcpu: *mut *mut KvmVcpu) -> *mut KernelFile;
    pub(crate) unsafe fn tandem_put_vcpu(file: *mut KernelFile);
    pub(crate) unsafe fn tandem_vcpu_fits(isa: *const Isa, vcpu: *mut KvmVcpu) -> c_int;
    pub(crate) unsafe fn tandem_vcpu_trylock(vcpu: *mut KvmVcpu) -> bool;
    pub(crate) unsafe fn tandem_vcpu_unlock(vcpu: *mut KvmVcpu);
    pub(crate) unsafe fn tandem_vcpu_nudge(vcpu: *mut KvmVcpu);
    pub(crate) unsafe fn tandem_request_pause(vcpu: *mut KvmVcpu);
    pub(crate) unsafe fn tandem_cancel_pause(vcpu: *mut KvmVcpu);
    pub(crate) unsafe fn tandem_in_nested_guest(vcpu: *mut KvmVcpu) -> bool;
    pub(crate) unsafe fn tandem_alloc_area(len: c_ulong) -> *mut c_void;
    pub(crate) unsafe fn tandem_free_area(area: *mut c_void);
    pub(crate) unsafe fn tandem_map_area(vma: *mut c_void, area: *mut c_void, len: c_ulong) -> c_int;
    pub(crate) safe fn tandem_rdtsc() -> u64;
    pub(crate) safe fn tandem_random() -> u64;
    pub(crate) safe fn tandem_host_khz() -> u32;
    pub(crate) safe fn tandem_sleep();
}
