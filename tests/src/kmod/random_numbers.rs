//! RDRAND and RDSEED. The programs are made here: one for each destination and size.

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{kvm_cpuid_entry2, kvm_regs};
use kvm_ioctls::Kvm;
use tandem_kmod_brain::abi::Pause;
use tandem_kmod_brain::instruction::{CARRY, STATUS};
use tandem_kmod_brain::ring::Entry;
use tandem_kmod_brain::trap::{RSP, Trap};
use tandem_vmm::machine::cpu::capture::CaptureMode;
use tandem_vmm::machine::cpu::cpuid;

use super::guest;
use super::trials::{RINGS, Skipped, drain, feed, recorder};
use super::vm::{EDGE, End, Ring, Tiny, all_traps};

/// Where the programs lie.
const PROGRAM: u64 = EDGE - 0x1000;
/// OUT to [`guest::DONE`], which leaves all registers as they are.
const OUT: [u8; 2] = [0xe6, guest::DONE as u8];

/// One of the two, with a destination of `size` bytes.
#[derive(Clone, Copy, Debug)]
struct Random {
    trap: Trap,
    destination: u8,
    size: u8,
    /// In 32-bit code of compatibility mode; with 16-bit addresses where the operand has as many.
    compatible: bool,
}

impl Random {
    /// Those that this host can capture, by all destinations and by these sizes.
    fn of_sizes(system: &Kvm, sizes: &'static [u8]) -> Result<Vec<Self>> {
        let traps = available(system)?;
        let of = |trap| {
            (0..16).flat_map(move |destination| {
                let of_size = move |size: &u8| Self { trap, destination, size: *size, compatible: false };
                sizes.iter().map(of_size)
            })
        };
        Ok(traps.into_iter().flat_map(of).collect())
    }

    fn all(system: &Kvm) -> Result<Vec<Self>> {
        Self::of_sizes(system, &[2, 4, 8])
    }

    /// SDM volume 2B: NFx 0F C7 /6 and /7.
    fn code(self) -> Vec<u8> {
        let extension = if self.trap == Trap::Rdrand { 6 } else { 7 };
        let mut code = if self.size == 2 { vec![0x66] } else { vec![] };
        match (self.compatible, self.size) {
            (true, 2) => code.push(0x67),
            (true, _) => {}
            (false, _) => code.push(0x40 | u8::from(self.size == 8) << 3 | self.destination >> 3),
        }
        code.extend([0x0f, 0xc7, 0xc0 | extension << 3 | self.destination & 7]);
        code
    }

    /// Puts the vCPU in front of it, and of an end.
    fn start(self, vm: &Tiny, ring: Ring) -> Result<()> {
        start(vm, &[self.code(), OUT.to_vec()].concat(), PROGRAM, ring)?;
        if self.compatible {
            let mut sregs = vm.vcpu.get_sregs()?;
            (sregs.cs.l, sregs.cs.db) = (0, 1);
            vm.vcpu.set_sregs(&sregs)?;
        }
        Ok(())
    }

    /// Records it, and checks all that it did; gives the value.
    fn check(self, vm: &mut Tiny, ring: Ring) -> Result<u64> {
        self.start(vm, ring)?;
        let (mut wanted, flags) = registers(vm)?;
        done(vm)?;
        let entries = drain(vm)?;
        ensure!(entries.len() == 1, "{} recorded of {self:?} in {ring:?}", entries.len());
        let Entry { trap, value, .. } = entries[0];
        ensure!(trap == self.trap, "{trap:?} instead of {self:?}");
        let destination = &mut wanted[usize::from(self.destination)];
        *destination = if self.size == 2 { *destination & !0xffff | value } else { value };
        ensure!(self.size == 8 || value >> (8 * self.size) == 0, "{value:#x} of {self:?}");
        let (found, after) = registers(vm)?;
        ensure!(found == wanted, "{found:x?} instead of {wanted:x?} by {self:?} in {ring:?}");
        let flags = flags & !STATUS | CARRY;
        ensure!(after == flags, "RFLAGS {after:#x} instead of {flags:#x} by {self:?} in {ring:?}");
        Ok(value)
    }
}

/// The random traps that the module can capture, of instructions that guests have here.
fn available(system: &Kvm) -> Result<Vec<Trap>> {
    let supported = system.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let traps = all_traps()? & cpuid::shown(supported.as_slice());
    let random = |trap: &Trap| trap.is_random() && traps & trap.bit() != 0;
    let traps: Vec<_> = Trap::ALL.into_iter().filter(random).collect();
    if traps.is_empty() {
        bail!(Skipped("this CPU cannot intercept RDRAND and RDSEED, or has not got them (AMD-V cannot)"));
    }
    Ok(traps)
}

/// In the order of the instruction encoding.
fn registers(vm: &Tiny) -> Result<([u64; 16], u64)> {
    let r = vm.vcpu.get_regs()?;
    let registers = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    Ok((registers, r.rflags))
}

/// Puts the vCPU at the beginning of a program of its own, all registers full and all status flags but CF set.
fn start(vm: &Tiny, code: &[u8], at: u64, ring: Ring) -> Result<()> {
    const FULL: u64 = 0xa5a5_5a5a_c3c3_3c3c;
    vm.write(at, code)?;
    let full = kvm_regs {
        rax: FULL,
        rbx: FULL,
        rcx: FULL,
        rdx: FULL,
        rsi: FULL,
        rbp: FULL,
        r8: FULL,
        r9: FULL,
        r10: FULL,
        r11: FULL,
        r12: FULL,
        r13: FULL,
        r14: FULL,
        r15: FULL,
        rflags: STATUS & !CARRY,
        ..kvm_regs::default()
    };
    vm.start_with(at, ring, &full, 0)
}

fn done(vm: &mut Tiny) -> Result<()> {
    // AL may be anything: it comes after the handlers' numbers only if it is random too.
    match vm.run()? {
        End::Done(_) => Ok(()),
        end => bail!("{end:x?}"),
    }
}

/// All of them in one program.
fn program(all: &[Random]) -> Vec<u8> {
    all.iter().flat_map(|random| random.code()).chain(OUT).collect()
}

pub(super) fn recorded(system: &Kvm) -> Result<()> {
    let all = Random::of_sizes(system, &[4, 8])?;
    // Enough registers for 32-bit code.
    let narrow = Random::of_sizes(system, &[2, 4])?.into_iter().filter(|random| random.destination < 8);
    let narrow: Vec<_> = narrow.map(|random| Random { compatible: true, ..random }).collect();
    for ring in RINGS {
        let mut vm = recorder(system, 1024)?;
        let mut whole = Vec::new();
        for random in all.iter().chain(&narrow) {
            let value = random.check(&mut vm, ring)?;
            if random.size == 8 {
                whole.push(value);
            }
        }
        let (ones, bits) = (whole.iter().map(|v| v.count_ones()).sum::<u32>(), 64 * whole.len() as u32);
        ensure!(ones.abs_diff(bits / 2) < bits / 8, "{ones} ones among {bits} bits");
        whole.sort_unstable();
        whole.dedup();
        ensure!(64 * whole.len() as u32 == bits, "a value came twice");
    }
    Ok(())
}

pub(super) fn narrow(system: &Kvm) -> Result<()> {
    let all = Random::of_sizes(system, &[2])?;
    for ring in RINGS {
        let mut vm = recorder(system, 1024)?;
        for random in &all {
            random.start(&vm, ring)?;
            done(&mut vm)?;
            if drain(&mut vm)?.first().is_some_and(|entry| entry.value >> 16 != 0) {
                bail!(Skipped(
                    "this CPU tells the address size of RDRAND for its operand size in 64-bit code (Bochs does)"
                ));
            }
            random.check(&mut vm, ring)?;
        }
    }
    Ok(())
}

pub(super) fn replayed(system: &Kvm) -> Result<()> {
    let all = Random::all(system)?;
    for ring in RINGS {
        let mut one = recorder(system, 1024)?;
        start(&one, &program(&all), PROGRAM, ring)?;
        done(&mut one)?;
        let entries = drain(&mut one)?;
        ensure!(entries.len() == all.len(), "{} recorded", entries.len());
        let mut two = Tiny::new(system)?;
        two.register(all_traps()?, 1024, CaptureMode::Replay)?;
        start(&two, &program(&all), PROGRAM, ring)?;
        let half = entries.len() / 2;
        feed(&mut two, &entries[..half])?;
        ensure!(two.run()? == End::Paused(Pause::Empty), "no pause at the end of the ring");
        feed(&mut two, &entries[half..])?;
        done(&mut two)?;
        ensure!(registers(&one)? == registers(&two)?, "other registers");
        let (one, two) = (one.capture()?, two.capture()?);
        ensure!((one.digest(), one.served()) == (two.digest(), two.served()), "other digest");
    }
    Ok(())
}

pub(super) fn diverged(system: &Kvm) -> Result<()> {
    for random in Random::all(system)?.into_iter().step_by(5) {
        let others = Trap::ALL.into_iter().filter(|trap| *trap != random.trap);
        for trap in others {
            let mut vm = Tiny::new(system)?;
            vm.register(all_traps()?, 16, CaptureMode::Replay)?;
            random.start(&vm, Ring::User)?;
            feed(&mut vm, &[Entry { trap, value: 1, ordinal: 0 }])?;
            let before = registers(&vm)?;
            for _ in 0..2 {
                ensure!(vm.run()? == End::Paused(Pause::Diverged), "{trap:?} was taken for {random:?}");
                ensure!(registers(&vm)? == before && vm.capture()?.served() == 0, "it was executed");
            }
        }
    }
    Ok(())
}

pub(super) fn page_end(system: &Kvm) -> Result<()> {
    let all = Random::all(system)?;
    // The handlers need a stack.
    for random in all.iter().filter(|random| usize::from(random.destination) != RSP).step_by(4) {
        for ring in RINGS {
            let mut vm = recorder(system, 16)?;
            vm.unmap(EDGE)?;
            let code = random.code();
            start(&vm, &code, EDGE - code.len() as u64, ring)?;
            let end = vm.run()?;
            ensure!(end == End::Done(guest::BY_FAULT), "{end:x?} after {random:?}");
            // The fault is of the next instruction: this one has happened.
            let rip = vm.word(guest::CAUGHT)?;
            ensure!(rip == EDGE, "a fault at {rip:#x}");
            let value = drain(&mut vm)?.first().context("nothing recorded")?.value;
            let rax = vm.word(guest::CAUGHT + 8)?;
            if random.destination == 0 && random.size > 2 {
                ensure!(rax == value, "RAX {rax:#x} instead of {value:#x}");
            }
        }
    }
    Ok(())
}

/// What hides both from a guest.
fn hide(entry: &mut kvm_cpuid_entry2) {
    match (entry.function, entry.index) {
        (1, _) => entry.ecx &= !(1 << 30),
        (7, 0) => entry.ebx &= !(1 << 18),
        _ => {}
    }
}

pub(super) fn hidden(system: &Kvm) -> Result<()> {
    for random in Random::all(system)?.into_iter().step_by(7) {
        for ring in RINGS {
            for registered in [false, true, false] {
                let mut vm = Tiny::with_cpuid(system, hide)?;
                if registered {
                    vm.register(all_traps()?, 16, CaptureMode::Record)?;
                }
                for turn in 0..2 {
                    random.start(&vm, ring)?;
                    let end = vm.run()?;
                    ensure!(end == End::Done(guest::BY_FAULT), "{end:x?} at {random:?}, turn {turn}");
                    ensure!(vm.word(guest::CAUGHT)? == PROGRAM, "a fault somewhere else");
                    if registered {
                        ensure!(drain(&mut vm)?.is_empty(), "recorded though it faulted");
                        // KVM's own wish outlives ours.
                        vm.capture()?.set_mode(CaptureMode::Off)?;
                    }
                }
                vm.capture = None;
                random.start(&vm, ring)?;
                let end = vm.run()?;
                ensure!(end == End::Done(guest::BY_FAULT), "{end:x?} after it was let go");
            }
        }
    }
    Ok(())
}

pub(super) fn let_go(system: &Kvm) -> Result<()> {
    let all = Random::all(system)?;
    let code = program(&all);
    let mut vm = recorder(system, 1024)?;
    let native = |vm: &mut Tiny| -> Result<()> {
        start(vm, &code, PROGRAM, Ring::User)?;
        done(vm)?;
        // An exit that nobody wants would have become #UD.
        let end = vm.vcpu.get_regs()?.rip;
        ensure!(end >= PROGRAM && end <= PROGRAM + code.len() as u64, "it ended at {end:#x}");
        ensure!(registers(vm)?.1 & CARRY != 0, "no value");
        Ok(())
    };
    for _ in 0..3 {
        native(&mut vm)?;
        ensure!(drain(&mut vm)?.len() == all.len(), "not captured");
        let served = vm.capture()?.served();
        vm.capture()?.set_mode(CaptureMode::Off)?;
        native(&mut vm)?;
        ensure!(vm.capture()?.served() == served, "captured though the mode is off");
        vm.capture()?.set_mode(CaptureMode::Record)?;
        native(&mut vm)?;
        vm.capture = None;
        native(&mut vm)?;
        vm.register(all_traps()?, 1024, CaptureMode::Record)?;
    }
    Ok(())
}
