// SPDX-License-Identifier: GPL-2.0-only

//! A registered vCPU: what the probes do with it, and how it is let go.

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use kernel::ffi::c_void;
use kernel::prelude::*;
use kernel::sync::{Arc, global_lock};
use kernel::sync::rcu::synchronize_rcu;

use crate::brain::abi::{self, Control, Pause, Register};
use crate::brain::clock::VirtualTsc;
use crate::brain::histogram::{self, Kind, Live};
use crate::brain::instruction::Instruction;
use crate::brain::ring::Slot;
use crate::brain::table::{Table, TableError};
use crate::brain::trap::Trap;
use crate::brain::vcpu::{Area, Mode, Vcpu, Verdict};
use crate::shim::{self, Exit, Hardware, Isa, KernelFile, KvmVcpu};

/// All registered vCPUs: address of the vCPU to address of its [`Registration`].
static TABLE: Table = Table::new();

global_lock! {
    // SAFETY: initialised in the module's init, before anything can take it.
    pub(crate) unsafe(uninit) static REGISTERED: Mutex<u32> = 0;
}

/// The virtual TSC before [`abi::SET_CLOCK`]: 1 GHz, in steps of 16 ns.
const FIRST_CLOCK: abi::Clock = abi::Clock { guest_khz: 1_000_000, quantum: 4, value: 0 };

/// The memory shared with the VMM.
struct Memory {
    start: NonNull<u8>,
    len: usize,
    record_entries: usize,
    replay_entries: usize,
}

impl Memory {
    fn new(record_entries: u32, replay_entries: u32) -> Result<Self> {
        let len = abi::area_len(record_entries, replay_entries).ok_or(EINVAL)?;
        // SAFETY: no conditions; zeroed, and page-aligned.
        let start = NonNull::new(unsafe { shim::tandem_alloc_area(len) }).ok_or(ENOMEM)?.cast();
        Ok(Self { start, len, record_entries: record_entries as usize, replay_entries: replay_entries as usize })
    }

    fn area(&self) -> Area<'_> {
        let slots = |first: usize, entries: usize| {
            // SAFETY: `len` was computed for both rings behind the first page; the memory is zeroed, atomics all
            // of it, and lives as long as `self`.
            unsafe {
                let start = self.start.add(abi::PAGE).cast::<Slot>().add(first);
                core::slice::from_raw_parts(start.as_ptr(), entries)
            }
        };
        Area {
            // SAFETY: as above; `Control` is within the first page.
            control: unsafe { self.start.cast::<Control>().as_ref() },
            record: slots(0, self.record_entries),
            replay: slots(self.record_entries, self.replay_entries),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; user mappings keep the pages that they map.
        unsafe { shim::tandem_free_area(self.start.as_ptr().cast::<c_void>()) };
    }
}

/// What the vCPU's own lock guards: KVM_RUN holds it while the probes run.
struct State {
    brain: Vcpu,
    hardware: Hardware,
    /// Histograms, once they were asked for.
    kinds: Option<Arc<KVVec<Live>>>,
    tracing: bool,
    /// Host TSC at the last exit, while tracing; 0: none.
    left: u64,
    /// Reason of that exit.
    reason: u32,
}

/// A registered vCPU.
pub(crate) struct Registration {
    isa: &'static Isa,
    vcpu: *mut KvmVcpu,
    file: *mut KernelFile,
    memory: Memory,
    state: UnsafeCell<State>,
    /// The next entry shall undo what was done to the vCPU.
    leaving: AtomicBool,
    /// It has.
    left: AtomicBool,
}

// SAFETY: `state` is used only under the vCPU's lock, which the probes' caller holds; the rest is constant or atomic.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

/// A lock on a vCPU that does not run.
struct Idle<'a>(&'a Registration);

impl<'a> Idle<'a> {
    fn new(registration: &'a Registration) -> Option<Self> {
        // SAFETY: the registration's file reference keeps the vCPU.
        let locked = unsafe { shim::tandem_vcpu_trylock(registration.vcpu) };
        // Not `then_some`: an `Idle` that is made and dropped would unlock what another holds.
        locked.then(|| Self(registration))
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: the vCPU's lock is held by `self`, and `self` is borrowed for as long.
        unsafe { &mut *self.0.state.get() }
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        // SAFETY: taken in `new`.
        unsafe { shim::tandem_vcpu_unlock(self.0.vcpu) };
    }
}

impl Registration {
    /// Registers a vCPU. Errors as `abi::REGISTER` lists them.
    pub(crate) fn new(isa: &'static Isa, ask: &Register) -> Result<KBox<Self>> {
        let host_tsc = shim::tandem_rdtsc();
        let clock = clock(&FIRST_CLOCK, host_tsc).ok_or(ENODEV)?;
        let memory = Memory::new(ask.record_entries, ask.replay_entries)?;
        let mut vcpu = ptr::null_mut();
        // SAFETY: `isa` is one of the C side's, `vcpu` is a place for the answer.
        let file = kernel::error::from_err_ptr(unsafe { shim::tandem_get_vcpu(isa, ask.vcpu_fd, &mut vcpu) })?;
        let state = State {
            brain: Vcpu::new(ask.traps, clock),
            hardware: Hardware::default(),
            kinds: None,
            tracing: false,
            left: 0,
            reason: 0,
        };
        let new = Self {
            isa,
            vcpu,
            file,
            memory,
            state: UnsafeCell::new(state),
            leaving: AtomicBool::new(false),
            // Until it is in the table there is nothing to undo.
            left: AtomicBool::new(true),
        };
        let new = KBox::new(new, GFP_KERNEL)?;
        new.enter_table()?;
        Ok(new)
    }

    fn enter_table(&self) -> Result {
        let idle = Idle::new(self).ok_or(EBUSY)?;
        // SAFETY: the vCPU is locked.
        kernel::error::to_result(unsafe { shim::tandem_vcpu_fits(self.isa, self.vcpu) })?;
        let mut registered = REGISTERED.lock();
        TABLE.insert(self.vcpu as usize, ptr::from_ref(self) as usize).map_err(|error| match error {
            TableError::Present => EEXIST,
            TableError::Full => ENOSPC,
        })?;
        if *registered == 0 {
            // SAFETY: the probes find everything in place.
            let attached = kernel::error::to_result(unsafe { shim::tandem_attach() });
            if let Err(error) = attached {
                TABLE.remove(self.vcpu as usize);
                synchronize_rcu();
                return Err(error);
            }
        }
        *registered += 1;
        self.left.store(false, Ordering::Relaxed);
        drop(idle);
        Ok(())
    }

    /// Bytes of the shared area.
    pub(crate) fn area_len(&self) -> usize {
        self.memory.len
    }

    /// Maps the shared area.
    pub(crate) fn map(&self, vma: *mut c_void) -> Result {
        // SAFETY: the VMA is being set up by the caller; the area was allocated for this.
        kernel::error::to_result(unsafe {
            shim::tandem_map_area(vma, self.memory.start.as_ptr().cast(), self.memory.len)
        })
    }

    fn idle(&self) -> Result<Idle<'_>> {
        Idle::new(self).ok_or(EBUSY)
    }

    /// Sets the virtual TSC.
    pub(crate) fn set_clock(&self, ask: &abi::Clock) -> Result {
        let clock = clock(ask, shim::tandem_rdtsc()).ok_or(EINVAL)?;
        self.idle()?.state().brain.set_clock(clock);
        Ok(())
    }

    /// Sets the mode.
    pub(crate) fn set_mode(&self, number: u32) -> Result {
        let mode = Mode::of(number).ok_or(EINVAL)?;
        let mut idle = self.idle()?;
        idle.state().brain.set_mode(mode, shim::tandem_rdtsc(), &self.memory.area());
        // SAFETY: the vCPU is locked.
        unsafe { shim::tandem_cancel_pause(self.vcpu) };
        Ok(())
    }

    /// Switches histograms on, from zero, and gives them; or off.
    pub(crate) fn set_tracing(&self, on: bool) -> Result<Option<Arc<KVVec<Live>>>> {
        let mut idle = self.idle()?;
        let state = idle.state();
        if on {
            match &state.kinds {
                Some(kinds) => kinds.iter().for_each(Live::clear),
                None => {
                    let mut kinds = KVVec::new();
                    for _ in 0..histogram::KINDS {
                        kinds.push(Live::default(), GFP_KERNEL)?;
                    }
                    state.kinds = Some(Arc::new(kinds, GFP_KERNEL)?);
                }
            }
        }
        state.tracing = on;
        state.left = 0;
        Ok(state.kinds.clone())
    }

    /// One histogram.
    pub(crate) fn histogram(&self, index: u32) -> Result<Kind> {
        let mut idle = self.idle()?;
        let kinds = idle.state().kinds.as_ref().ok_or(ENOENT)?;
        kinds.get(index as usize).map(Live::kind).ok_or(ENOENT)
    }

    /// The vCPU is about to enter the guest.
    fn entering(&self, state: &mut State) {
        if self.leaving.load(Ordering::Acquire) {
            if !self.left.load(Ordering::Relaxed) {
                // SAFETY: in the probe of this vCPU.
                unsafe {
                    (self.isa.arm)(self.vcpu, 0, &mut state.hardware);
                    shim::tandem_cancel_pause(self.vcpu);
                }
                self.left.store(true, Ordering::Release);
            }
            return;
        }
        // SAFETY: in the probe of this vCPU.
        unsafe {
            // A guest that became a hypervisor after it was registered runs its own guest here, under controls
            // that are not ours to change.
            if !shim::tandem_in_nested_guest(self.vcpu) {
                (self.isa.arm)(self.vcpu, state.brain.armed(), &mut state.hardware);
            }
        }
        let pause = &self.memory.area().control.module.pause;
        if pause.load(Ordering::Relaxed) != Pause::None as u32 {
            pause.store(Pause::None as u32, Ordering::Relaxed);
        }
        if state.tracing && state.left != 0 {
            let cycles = shim::tandem_rdtsc().wrapping_sub(state.left);
            if let Some(kinds) = &state.kinds {
                histogram::note(kinds, state.reason, cycles);
            }
            state.left = 0;
        }
    }

    /// The vCPU has left the guest.
    fn exited(&self, state: &mut State) {
        let mut exit = Exit::default();
        // SAFETY: in the probe of this vCPU.
        unsafe { (self.isa.decode)(self.vcpu, &mut exit) };
        if state.tracing {
            state.left = shim::tandem_rdtsc();
            state.reason = exit.reason;
        }
        let Some(trap) = u8::try_from(exit.trap).ok().and_then(Trap::of) else { return };
        // SAFETY: in the probe of this vCPU.
        if unsafe { shim::tandem_in_nested_guest(self.vcpu) } {
            return;
        }
        // SAFETY: `decode` gave the vCPU's register array, which nobody else uses while the probe runs.
        let Some(registers) = (unsafe { exit.registers.as_mut() }) else { return };
        let mut instruction = Instruction {
            trap,
            rip: exit.rip,
            destination: exit.destination,
            size: exit.size,
            flags: &mut exit.flags,
            registers,
        };
        let host = || if trap.is_random() { shim::tandem_random() } else { shim::tandem_rdtsc() };
        match state.brain.trapped(&mut instruction, host, &self.memory.area()) {
            Verdict::NotOurs => {}
            // SAFETY: in the probe of this vCPU, at an exit for the instruction at its RIP.
            Verdict::Served => unsafe { (self.isa.step_over)(self.vcpu, &exit) },
            // SAFETY: as above.
            Verdict::Paused(_) => unsafe {
                (self.isa.ignore)(self.vcpu);
                shim::tandem_request_pause(self.vcpu);
            },
        }
    }

    /// Undoes what was done to the vCPU. When this returns, no probe touches it any more.
    fn let_go(&self) {
        self.leaving.store(true, Ordering::Release);
        // Either the vCPU does not run, or it passes the entry probe soon, or it leaves KVM_RUN: without an
        // in-kernel interrupt controller it sleeps nowhere in between.
        while !self.left.load(Ordering::Acquire) {
            if let Some(mut idle) = Idle::new(self) {
                if !self.left.load(Ordering::Relaxed) {
                    // SAFETY: the vCPU is locked.
                    unsafe {
                        (self.isa.disarm_idle)(self.vcpu, &mut idle.state().hardware);
                        shim::tandem_cancel_pause(self.vcpu);
                    }
                    self.left.store(true, Ordering::Release);
                }
            } else {
                // SAFETY: the registration's file reference keeps the vCPU.
                unsafe { shim::tandem_vcpu_nudge(self.vcpu) };
                shim::tandem_sleep();
            }
        }
        let mut registered = REGISTERED.lock();
        TABLE.remove(self.vcpu as usize);
        *registered -= 1;
        if *registered == 0 {
            // SAFETY: they are attached; this waits for those that run.
            unsafe { shim::tandem_detach() };
        } else {
            // A probe that found the registration before runs with interrupts off: RCU waits for it.
            synchronize_rcu();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // A registration that never got into the table has nothing to undo.
        if TABLE.get(self.vcpu as usize) == Some(ptr::from_ref(self) as usize) {
            self.let_go();
        }
        // SAFETY: the reference that `new` took.
        unsafe { shim::tandem_put_vcpu(self.file) };
    }
}

fn clock(ask: &abi::Clock, host_tsc: u64) -> Option<VirtualTsc> {
    VirtualTsc::new(ask.guest_khz, shim::tandem_host_khz(), ask.quantum, host_tsc, ask.value)
}

/// Runs `probe` for a registered vCPU.
///
/// # Safety
/// Called by KVM between taking and leaving the vCPU's lock, with interrupts off.
unsafe fn probed(vcpu: *mut KvmVcpu, probe: impl FnOnce(&Registration, &mut State)) {
    let Some(address) = TABLE.get(vcpu as usize) else { return };
    // SAFETY: a registration is freed only after it left the table and after all probes that ran then: they run
    // with interrupts off, which RCU waits for.
    let registration = unsafe { &*(address as *const Registration) };
    // SAFETY: the vCPU's lock is held, and a probe is not interrupted by another of the same vCPU.
    probe(registration, unsafe { &mut *registration.state.get() });
}

/// The probe of kvm_entry.
///
/// # Safety
/// Called by the tracepoint, as [`probed`] demands.
#[no_mangle]
pub(crate) unsafe extern "C" fn tandem_on_entry(vcpu: *mut KvmVcpu) {
    // SAFETY: the caller's word.
    unsafe { probed(vcpu, Registration::entering) };
}

/// The probe of kvm_exit.
///
/// # Safety
/// Called by the tracepoint, as [`probed`] demands.
#[no_mangle]
pub(crate) unsafe extern "C" fn tandem_on_exit(vcpu: *mut KvmVcpu) {
    // SAFETY: the caller's word.
    unsafe { probed(vcpu, Registration::exited) };
}
