//! The same trap, taken to user space: what a VMM would do where no module serves RDTSC for it.
//!
//! It does the module's job by the module's own code (`tandem_kmod_brain`): the virtual TSC, the record ring, the digest,
//! the registers. What KVM does for the module, it does itself: it finds the instruction behind RIP, by KVM_TRANSLATE and
//! in guest memory, steps over it by its length, and ends the interrupt shadow. Its guests run 64-bit code without
//! single-stepping themselves: it does not ask for segments, and does not inject #DB.

use anyhow::{Context, ensure};
use kvm_ioctls::SyncReg;
use tandem_kmod_brain::abi::{Control, Pause};
use tandem_kmod_brain::clock::VirtualTsc;
use tandem_kmod_brain::instruction::Instruction;
use tandem_kmod_brain::ring::Slot;
use tandem_kmod_brain::trap::{ALL_TRAPS, Trap};
use tandem_kmod_brain::vcpu::{Area, Mode, Vcpu, Verdict};
use tandem_tests::kmod::vm::{End, Tiny};
use tandem_vmm::machine::cpu::capture::{GUEST_KHZ, QUANTUM, probe};

use super::length::{LONGEST, length};

const PAGE: u64 = 4096;

/// A VMM's state of one vCPU.
pub(super) struct UserSpace {
    brain: Vcpu,
    control: Control,
    record: Vec<Slot>,
}

fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl UserSpace {
    /// With room for so many values.
    pub(super) fn new(values: usize) -> anyhow::Result<Self> {
        let host_khz = probe()?.host_khz;
        let clock = VirtualTsc::new(GUEST_KHZ, host_khz, QUANTUM, host_tsc(), 0).context("an odd TSC")?;
        let record = (0..values.next_power_of_two()).map(|_| Slot::default()).collect();
        let mut new = Self { brain: Vcpu::new(ALL_TRAPS, clock), control: Control::default(), record };
        new.clear();
        Ok(new)
    }

    /// Empties the ring.
    pub(super) fn clear(&mut self) {
        let area = Area { control: &self.control, record: &self.record, replay: &[] };
        self.brain.set_mode(Mode::Record, host_tsc(), &area);
    }

    /// Runs the guest to its end; tells how many instructions were served.
    pub(super) fn run(&mut self, vm: &mut Tiny) -> anyhow::Result<u32> {
        let mut served = 0;
        loop {
            match vm.run()? {
                End::Done(0) => return Ok(served),
                End::Paused(Pause::Limit) => self.serve(vm)?,
                end => anyhow::bail!("the guest ended otherwise: {end:x?}"),
            }
            served += 1;
        }
    }

    fn serve(&mut self, vm: &mut Tiny) -> anyhow::Result<()> {
        let length = fetch(vm)?;
        let area = Area { control: &self.control, record: &self.record, replay: &[] };
        let state = vm.vcpu.sync_regs_mut();
        let regs = &mut state.regs;
        let mut registers = [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        let mut instruction = Instruction {
            trap: Trap::Rdtsc,
            rip: regs.rip,
            destination: 0,
            size: 0,
            flags: &mut regs.rflags,
            registers: &mut registers,
        };
        let verdict = self.brain.trapped(&mut instruction, host_tsc, &area);
        ensure!(verdict == Verdict::Served, "{verdict:?}");
        [regs.rax, regs.rcx, regs.rdx] = [registers[0], registers[1], registers[2]];
        regs.rip = regs.rip.wrapping_add(length);
        let shadow = std::mem::take(&mut state.events.interrupt.shadow) != 0;
        vm.vcpu.set_sync_dirty_reg(SyncReg::Register);
        if shadow {
            vm.vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
        }
        Ok(())
    }
}

/// Finds the instruction that the guest stands at, and tells its length.
fn fetch(vm: &Tiny) -> anyhow::Result<u64> {
    let rip = vm.vcpu.sync_regs().regs.rip;
    let mut bytes = [0; LONGEST];
    let first = usize::try_from(PAGE - rip % PAGE)?.min(LONGEST);
    read(vm, rip, &mut bytes[..first])?;
    let mut found = length(&bytes[..first]);
    if found.is_none() && first < LONGEST {
        read(vm, rip + first as u64, &mut bytes[first..])?;
        found = length(&bytes);
    }
    Ok(found.context("there is no RDTSC")? as u64)
}

/// Reads guest memory at a linear address, within a page.
fn read(vm: &Tiny, address: u64, bytes: &mut [u8]) -> anyhow::Result<()> {
    let place = vm.vcpu.translate_gva(address).context("KVM_TRANSLATE")?;
    ensure!(place.valid != 0, "nothing is mapped at {address:#x}");
    vm.read(place.physical_address, bytes)
}
