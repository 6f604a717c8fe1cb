//! The vCPU on KVM, without in-kernel interrupt controller.
//!
//! Entering the guest ends in an `Exit`, which is a function of the guest's past, or in an
//! interruption by the host, which is not and leaves no trace.

use kvm_bindings::{
    KVM_CAP_SYNC_REGS, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_TPR_ACCESS, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_SYNC_X86_REGS, kvm_interrupt, kvm_regs,
    kvm_run,
};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::exit::Exit;
use super::msr::Answer;

/// The largest data area of a port exit that KVM can hand over, in bytes (one page).
const MAX_PORT_DATA: usize = 4096;

/// What the vCPU could not do.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// A KVM call failed.
    #[error("KVM {0} failed")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// KVM could not run the guest's code.
    #[error(
        "KVM cannot run the guest here: {reason} at RIP {rip:#x}, code bytes {code:02x?}; \
         `tandem check` tells which guests this KVM can run"
    )]
    CannotRun {
        /// KVM's reason, with its suberror.
        reason: String,
        /// Guest instruction pointer.
        rip: u64,
        /// Instruction bytes at RIP, as far as KVM gave them.
        code: Vec<u8>,
    },
    /// KVM returned a reason that this machine never asks for.
    #[error("KVM left the guest for an unexpected reason ({0})")]
    Unexpected(u32),
}

/// How an entry into the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// At a deterministic exit, not yet emulated.
    Exit(Exit),
    /// By the host (a signal, an immediate exit). The guest stands between two instructions.
    Interrupted,
    /// By the kernel module, in front of an instruction that it captures.
    Paused,
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    sync_regs: bool,
}

/// The one ioctl that kvm-ioctls lacks.
mod ioctl {
    vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, kvm_bindings::KVMIO, 0x86, kvm_bindings::kvm_interrupt);
}

impl Vcpu {
    /// Creates vCPU 0 of `vm`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn new(vm: &VmFd) -> Result<Self, VcpuError> {
        let mut fd = vm.create_vcpu(0).map_err(|e| VcpuError::Kvm("KVM_CREATE_VCPU", e))?;
        let offered = vm.check_extension_raw(u64::from(KVM_CAP_SYNC_REGS));
        let sync_regs = offered & KVM_SYNC_X86_REGS as i32 != 0;
        if sync_regs {
            fd.get_kvm_run().kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS);
        }
        Ok(Self { fd, sync_regs })
    }

    /// The KVM file descriptor, for loading and saving state.
    #[must_use]
    pub const fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The address of the mapped `kvm_run`, for a signal handler that asks for an immediate exit.
    pub fn run_area(&mut self) -> *mut kvm_run {
        self.fd.get_kvm_run()
    }

    /// Enters the guest.
    ///
    /// # Errors
    /// When KVM cannot run the guest's code, or fails.
    pub fn enter(&mut self) -> Result<Entered, VcpuError> {
        match self.fd.run() {
            Ok(_) => {}
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                // A kick may have asked for it, once.
                self.fd.set_kvm_immediate_exit(0);
                return Ok(Entered::Interrupted);
            }
            Err(e) => return Err(VcpuError::Kvm("KVM_RUN", e)),
        }
        self.decode()
    }

    /// Completes an exit that was answered, without running the guest: after this the registers are
    /// those of the next instruction. May turn up a further exit of the same instruction.
    ///
    /// # Errors
    /// As [`Vcpu::enter`].
    pub fn complete(&mut self) -> Result<Entered, VcpuError> {
        self.fd.set_kvm_immediate_exit(1);
        let result = self.enter();
        self.fd.set_kvm_immediate_exit(0);
        result
    }

    fn decode(&mut self) -> Result<Entered, VcpuError> {
        let run = self.fd.get_kvm_run();
        let reason = run.exit_reason;
        // SAFETY: in each arm the exit reason, written by KVM, says which member of the union is
        // valid; all members are plain integers.
        let exit = unsafe {
            match reason {
                KVM_EXIT_IO => {
                    let io = run.__bindgen_anon_1.io;
                    let (port, size, count) = (io.port, io.size, io.count);
                    if u32::from(io.direction) == KVM_EXIT_IO_OUT {
                        Exit::PortOut { port, size, count }
                    } else {
                        Exit::PortIn { port, size, count }
                    }
                }
                KVM_EXIT_MMIO => {
                    let mmio = run.__bindgen_anon_1.mmio;
                    let (address, size) = (mmio.phys_addr, mmio.len.min(8) as u8);
                    if mmio.is_write != 0 {
                        let mut bytes = [0; 8];
                        bytes[..usize::from(size)].copy_from_slice(&mmio.data[..usize::from(size)]);
                        Exit::MmioWrite { address, size, data: u64::from_le_bytes(bytes) }
                    } else {
                        Exit::MmioRead { address, size }
                    }
                }
                KVM_EXIT_HLT => Exit::Halt,
                KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
                KVM_EXIT_SHUTDOWN => Exit::Shutdown,
                KVM_EXIT_X86_RDMSR => Exit::MsrRead { index: run.__bindgen_anon_1.msr.index },
                KVM_EXIT_X86_WRMSR => {
                    let msr = run.__bindgen_anon_1.msr;
                    Exit::MsrWrite { index: msr.index, data: msr.data }
                }
                KVM_EXIT_INTR => return Ok(Entered::Interrupted),
                // What the module leaves by: `tandem_kmod_brain::abi::PAUSE_EXIT`.
                KVM_EXIT_TPR_ACCESS => return Ok(Entered::Paused),
                KVM_EXIT_INTERNAL_ERROR => return Err(self.internal_error()),
                KVM_EXIT_FAIL_ENTRY => {
                    let hardware = run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason;
                    return Err(
                        self.cannot_run(format!("entry failed, hardware reason {hardware:#x}"), vec![])
                    );
                }
                other => return Err(VcpuError::Unexpected(other)),
            }
        };
        Ok(Entered::Exit(exit))
    }

    /// KVM_EXIT_INTERNAL_ERROR: suberror 1 is "emulation failure" and carries instruction bytes.
    fn internal_error(&mut self) -> VcpuError {
        // SAFETY: called for KVM_EXIT_INTERNAL_ERROR only, for which KVM fills this member; all
        // views of it are plain integers.
        let (suberror, flags, size, bytes) = unsafe {
            let failure = self.fd.get_kvm_run().__bindgen_anon_1.emulation_failure;
            let insn = failure.__bindgen_anon_1.__bindgen_anon_1;
            (failure.suberror, failure.flags, insn.insn_size, insn.insn_bytes)
        };
        let code = if suberror == 1 && flags & 1 != 0 {
            bytes[..usize::from(size).min(bytes.len())].to_vec()
        } else {
            Vec::new()
        };
        self.cannot_run(format!("internal error {suberror}"), code)
    }

    fn cannot_run(&self, reason: String, code: Vec<u8>) -> VcpuError {
        let rip = self.fd.get_regs().map_or(0, |r| r.rip);
        VcpuError::CannotRun { reason, rip, code }
    }

    /// General registers as of the last exit.
    ///
    /// # Errors
    /// When KVM fails (only without KVM_CAP_SYNC_REGS).
    pub fn regs(&self) -> Result<kvm_regs, VcpuError> {
        if self.sync_regs {
            Ok(self.fd.sync_regs().regs)
        } else {
            self.fd.get_regs().map_err(|e| VcpuError::Kvm("KVM_GET_REGS", e))
        }
    }

    /// The data of a port exit: what the guest wrote, or where the answer goes. `len` bytes, at most
    /// one page.
    pub fn port_data(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(MAX_PORT_DATA);
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: called for port exits only; KVM put `data_offset` within the mapping (second page)
        // and at most a page of data there. The slice borrows `self`, which owns the mapping.
        unsafe {
            let offset = (*run).__bindgen_anon_1.io.data_offset as usize;
            std::slice::from_raw_parts_mut(run.cast::<u8>().add(offset), len)
        }
    }

    /// Answers an MMIO read.
    pub fn answer_mmio(&mut self, data: [u8; 8]) {
        self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = data;
    }

    /// Answers an MSR exit.
    pub fn answer_msr(&mut self, answer: Answer) {
        let run = self.fd.get_kvm_run();
        // SAFETY: called for MSR exits only; the member is plain integers.
        let msr = unsafe { &mut run.__bindgen_anon_1.msr };
        match answer {
            Answer::Value(value) => {
                msr.data = value;
                msr.error = 0;
            }
            Answer::Fault => msr.error = 1,
        }
        // A #GP that comes of this is delivered at the next entry, and an interrupt queued beside it
        // would be dropped at the exit after that (`svm_complete_interrupts` clears the queue). It has to
        // wait for the next interrupt window.
        run.ready_for_interrupt_injection = 0;
    }

    /// Whether an interrupt can be injected right now.
    pub fn ready_for_interrupt(&mut self) -> bool {
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection != 0 && run.if_flag != 0
    }

    /// The interrupt flag as of the last exit.
    pub fn interrupts_enabled(&mut self) -> bool {
        self.fd.get_kvm_run().if_flag != 0
    }

    /// Asks for an exit as soon as the guest can take an interrupt, or no longer asks.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(wanted);
    }

    /// Injects an external interrupt. Call only when [`Vcpu::ready_for_interrupt`].
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn inject(&mut self, vector: u8) -> Result<(), VcpuError> {
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: the descriptor is a vCPU, the argument outlives the call.
        let result = unsafe { ioctl_with_ref(&self.fd, ioctl::KVM_INTERRUPT(), &interrupt) };
        if result < 0 {
            return Err(VcpuError::Kvm("KVM_INTERRUPT", kvm_ioctls::Error::last()));
        }
        self.fd.get_kvm_run().ready_for_interrupt_injection = 0;
        Ok(())
    }
}
