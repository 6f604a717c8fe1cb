//! What each probe does, in the child process.

use std::io;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_enable_cap, kvm_guest_debug,
};
use kvm_ioctls::{MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, SyncReg};

use super::lab::{ANSWER, CR3, CR4, Lab, Mode, Seen, Stuck};
use super::probe::{Answer, Probe};
use super::snippets::{DIRTIED, FILTERED_MSR, FOUND, MMIO, OUTS, ROUNDS, Snippet, TURNS0, TURNS3};
use crate::host::tap::Tap;
use crate::machine::cpu::clock_page::ClockPage;

/// Tries one probe.
pub(super) fn attempt(probe: Probe) -> Answer {
    let tried = match probe {
        Probe::Ring3 => ring3(),
        Probe::Ring0 => ring0(),
        Probe::Sse => computes_fourteen(Snippet::Sse),
        Probe::Cmpxchg16b => computes_fourteen(Snippet::Cmpxchg16b),
        Probe::Syscall => into_ring0_and_back(Snippet::Syscall),
        Probe::Int => into_ring0_and_back(Snippet::Int),
        Probe::Protected => protected(),
        Probe::Control => control(),
        Probe::Step => step(),
        Probe::Dirty => dirty(),
        Probe::ClockPage => clock_page(),
        Probe::MsrFilter => msr_filter(),
        Probe::SyncRegs => sync_regs(),
        Probe::ImmediateExit => immediate_exit(),
        Probe::Tap => tap(),
        Probe::IoUring => io_uring().map_err(|error| Stuck(error.to_string())),
    };
    tried.unwrap_or_else(Answer::no)
}

/// A loop of two instructions a turn, run in several rounds with an exit at the end of each.
struct Loop {
    turns: u32,
    fastest: Duration,
}

impl Loop {
    /// Runs the rounds; each ends with `end`.
    fn measure(lab: &mut Lab, turns: u32, end: Seen) -> Result<Self, Stuck> {
        let mut fastest = Duration::MAX;
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            lab.expect(end)?;
            fastest = fastest.min(begun.elapsed());
        }
        Ok(Self { turns, fastest })
    }

    /// Nanoseconds of one instruction in the fastest round.
    fn instruction_ns(&self, exit_us: f64) -> f64 {
        let nanos = self.fastest.as_nanos() as f64 - exit_us * 1e3;
        (nanos / f64::from(2 * self.turns)).max(0.01)
    }
}

fn ring3() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Ring3, Mode::Ring3)?;
    lab.expect(Seen::Store(0, 14))?;
    let rounds = Loop::measure(&mut lab, TURNS3, Seen::Store(4, 0))?;
    let begun = Instant::now();
    lab.expect(Seen::Load(8))?;
    lab.expect(Seen::Store(12, ANSWER))?;
    lab.expect(Seen::Store(16, ANSWER))?;
    let exit_us = begun.elapsed().as_secs_f64() * 1e6 / 3.0;
    let instruction_ns = rounds.instruction_ns(exit_us);
    lab.interrupt()?;
    // It is taken at an entry; a few more doorbells may come first.
    for _ in 0..100 {
        match lab.next()? {
            Seen::Store(16, ANSWER) => {}
            Seen::Store(20, ANSWER) => {
                let detail = "64-bit code, SSE, MMIO exits, interrupts through ring 0".to_owned();
                let (instruction_ns, exit_us) = (Some(instruction_ns), Some(exit_us));
                return Ok(Answer { ok: true, detail, instruction_ns, exit_us });
            }
            seen => return Err(Stuck(format!("after an interrupt the guest did {seen:x?}"))),
        }
    }
    Err(Stuck("an injected interrupt never arrives".to_owned()))
}

fn ring0() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Ring0, Mode::Ring0)?;
    let begun = Instant::now();
    for left in (1..=OUTS).rev() {
        lab.expect(Seen::Out(FOUND, left))?;
    }
    let exit_us = begun.elapsed().as_secs_f64() * 1e6 / f64::from(OUTS);
    let rounds = Loop::measure(&mut lab, TURNS0, Seen::Out(FOUND, 0))?;
    let (instruction_ns, exit_us) = (Some(rounds.instruction_ns(exit_us)), Some(exit_us));
    Ok(Answer { ok: true, detail: "64-bit code, port exits".to_owned(), instruction_ns, exit_us })
}

fn computes_fourteen(snippet: Snippet) -> Result<Answer, Stuck> {
    Lab::new(snippet, Mode::Ring0)?.expect(Seen::Out(FOUND, 14))?;
    Ok(Answer::yes("works in ring 0"))
}

fn into_ring0_and_back(snippet: Snippet) -> Result<Answer, Stuck> {
    let mut lab = Lab::new(snippet, Mode::Ring3)?;
    lab.enable_syscall()?;
    match lab.next()? {
        Seen::Out(FOUND, 0x08) => {}
        Seen::Out(FOUND, selector) => return Err(Stuck(format!("its handler runs with CS {selector:#x}"))),
        seen => return Err(Stuck(format!("does not arrive in ring 0: the guest did {seen:x?}"))),
    }
    match lab.next()? {
        Seen::Store(0, 0x2b) => Ok(Answer::yes("into ring 0 and back")),
        seen => Err(Stuck(format!("does not come back to ring 3: the guest did {seen:x?}"))),
    }
}

fn protected() -> Result<Answer, Stuck> {
    Lab::new(Snippet::Protected, Mode::Protected)?.expect(Seen::Out(FOUND, 0x08))?;
    Ok(Answer::yes("runs without paging"))
}

/// QEMU 10 without nested paging shows a guest the host's CR3.
fn control() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Control, Mode::Ring0)?;
    for (name, set) in [("CR3", CR3), ("CR4", CR4)] {
        match lab.next()? {
            Seen::Out(FOUND, read) if read == set => {}
            seen => return Err(Stuck(format!("{name} is {set:#x}, and reading it the guest did {seen:x?}"))),
        }
    }
    Ok(Answer::yes("control registers read as they were set"))
}

fn step() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Step, Mode::Ring3)?;
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
        ..kvm_guest_debug::default()
    };
    lab.vcpu.set_guest_debug(&debug)?;
    for instruction in 1..=8 {
        match lab.next()? {
            Seen::Debug(rip) if rip == Snippet::Step.address() + instruction => {}
            seen => return Err(Stuck(format!("instead of one instruction the guest did {seen:x?}"))),
        }
    }
    Ok(Answer::yes("exact"))
}

fn dirty() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Dirty, Mode::Ring3)?;
    // Which of the two pages were written since the last time.
    let written = |lab: &Lab| -> Result<[bool; 2], Stuck> {
        let log = lab.vm.get_dirty_log(0, 0x20_0000)?;
        Ok(DIRTIED.map(|page| {
            let page = page >> 12;
            log.get(page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 != 0)
        }))
    };
    written(&lab)?;
    let mut said = Vec::new();
    for page in DIRTIED {
        lab.expect(Seen::Store(0, page as u32))?;
        said.push(written(&lab)?);
    }
    if said == [[true, false], [false, true]] {
        Ok(Answer::yes("names the pages written"))
    } else {
        Err(Stuck(format!("of two pages written one after the other the log says {said:?}")))
    }
}

/// The guest's devices become a page of memory: its loads are served from there, its stores come out as before.
fn clock_page() -> Result<Answer, Stuck> {
    let mut page = ClockPage::new(MMIO);
    let mut lab = Lab::new(Snippet::Ring3, Mode::Ring3)?;
    page.show(&lab.vm, Some(&[(8, u64::from(ANSWER))]))?;
    lab.expect(Seen::Store(0, 14))?;
    for _ in 0..ROUNDS {
        lab.expect(Seen::Store(4, 0))?;
    }
    lab.expect(Seen::Store(12, ANSWER))?;
    page.show(&lab.vm, None)?;
    Ok(Answer::yes("read without an exit"))
}

fn msr_filter() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Msr, Mode::Ring0)?;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..kvm_enable_cap::default() };
    cap.args[0] = u64::from(MsrExitReason::Filter.bits());
    lab.vm.enable_cap(&cap)?;
    let denied = [0u8];
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: FILTERED_MSR,
        msr_count: 1,
        bitmap: &denied,
    };
    lab.vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])?;
    lab.expect(Seen::ReadMsr(FILTERED_MSR))?;
    lab.expect(Seen::Out(FOUND, ANSWER))?;
    Ok(Answer::yes("a denied MSR is answered by user space"))
}

fn sync_regs() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Ring3, Mode::Ring3)?;
    lab.vcpu.set_sync_valid_reg(SyncReg::Register);
    lab.expect(Seen::Store(0, 14))?;
    let (with_exit, asked) = (lab.vcpu.sync_regs().regs, lab.vcpu.get_regs()?);
    if with_exit != asked || asked.rip <= Snippet::Ring3.address() {
        return Err(Stuck("the registers that come with an exit are not the guest's".to_owned()));
    }
    Ok(Answer::yes("registers come with the exit"))
}

fn immediate_exit() -> Result<Answer, Stuck> {
    let mut lab = Lab::new(Snippet::Ring3, Mode::Ring3)?;
    let before = lab.vcpu.get_regs()?;
    lab.vcpu.set_kvm_immediate_exit(1);
    match lab.vcpu.run() {
        Err(error) if error.errno() == libc::EINTR => {}
        other => return Err(Stuck(format!("KVM_RUN did not return at once: {other:?}"))),
    }
    if lab.vcpu.get_regs()? != before {
        return Err(Stuck("the guest ran before KVM_RUN returned".to_owned()));
    }
    lab.vcpu.set_kvm_immediate_exit(0);
    lab.expect(Seen::Store(0, 14))?;
    Ok(Answer::yes("KVM_RUN returns before the guest runs"))
}

/// Makes a tap in a network namespace of the child's own if it may have one, else in the present one.
fn tap() -> Result<Answer, Stuck> {
    // SAFETY: takes no pointers; this process is a child that ends with the probe.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let name = format!("tndm{}", std::process::id() % 1_000_000);
    match Tap::open_or_create(&name) {
        Ok(_) if own => Ok(Answer::yes("made one in a network namespace of its own, and removed it")),
        Ok(_) => Ok(Answer::yes("made one and removed it")),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Err(Stuck(format!("{error}{cause}")))
        }
    }
}

fn io_uring() -> io::Result<Answer> {
    let mut ring = IoUring::new(8)?;
    // SAFETY: a no-op refers to no memory.
    unsafe { ring.submission().push(&opcode::Nop::new().build().user_data(42)) }
        .map_err(|_| io::Error::other("an empty submission queue has no room"))?;
    ring.submit_and_wait(1)?;
    match ring.completion().next() {
        Some(done) if done.user_data() == 42 && done.result() >= 0 => {}
        other => return Err(io::Error::other(format!("a no-op came back as {other:?}"))),
    }
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known)?;
    let zero_copy = if known.is_supported(opcode::SendZc::CODE) { "with" } else { "without" };
    Ok(Answer::yes(format!("carries requests, {zero_copy} zero-copy send")))
}
