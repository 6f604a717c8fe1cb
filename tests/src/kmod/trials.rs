//! What must hold of a captured vCPU. Each trial stands alone and says why it failed.

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::kvm_regs;
use kvm_ioctls::Kvm;
use tandem_kmod_brain::abi::Pause;
use tandem_kmod_brain::ring::Entry;
use tandem_kmod_brain::trap::Trap;
use tandem_vmm::machine::cpu::capture::{CaptureMode, QUANTUM};
use thiserror::Error;

use super::vm::{EDGE, End, RESULTS, Ring, Tiny, all_traps};
use super::{guest, histograms, random_numbers};

pub(super) const RINGS: [Ring; 2] = [Ring::Kernel, Ring::User];
/// RFLAGS.IF.
const INTERRUPTS: u64 = 0x200;

/// A trial, and what it shows.
pub type Trial = (&'static str, fn(&Kvm) -> Result<()>);

/// A trial that this host cannot answer, and why.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Skipped(pub &'static str);

/// All trials.
pub const ALL: &[Trial] = &[
    ("recorded values are what the guest saw, in both rings", recorded_values),
    ("RDTSCP loads TSC_AUX", rdtscp),
    ("a replay gives the same values, registers and digest", replay),
    ("a replay ring that runs empty pauses the vCPU, and it goes on when fed", empty),
    ("another instruction than the recorded one is a divergence", diverged),
    ("a record ring that is full pauses the vCPU, and nothing is lost", full),
    ("a limit stops the guest in front of the instruction behind it", limit),
    ("the shadow of STI ends with the instruction; a pending interrupt comes right after", sti),
    ("so does that of MOV SS", mov_ss),
    ("at the end of a page, the next one there or not", page_end),
    ("prefixes are stepped over", prefixes),
    ("a single-step trap comes after the instruction, once", single_step),
    ("CR4.TSD and CR4.PCE fault in ring 3 as on hardware, and count nothing", faults),
    ("a counter that there is not faults", bad_counter),
    ("signals in a tight loop lose and repeat nothing", signals),
    ("an unregistered VM alongside reads the native TSC", unregistered),
    ("after it was let go, and with the mode off, the vCPU reads the native TSC", let_go),
    ("letting a running vCPU go from another thread leaves it running", let_go_running),
    ("the virtual TSC goes on after a replay where the replay ended", go_live),
    (
        "RDRAND and RDSEED fill each register by its size, set CF alone, and are recorded",
        random_numbers::recorded,
    ),
    ("so do those of 16 bits in 64-bit code", random_numbers::narrow),
    ("a replay gives the same random numbers, registers and digest", random_numbers::replayed),
    ("another instruction than RDRAND or RDSEED is a divergence", random_numbers::diverged),
    ("RDRAND and RDSEED at the end of a page", random_numbers::page_end),
    ("RDRAND and RDSEED that CPUID hides fault, whatever was registered", random_numbers::hidden),
    ("after the vCPU was let go, RDRAND and RDSEED are native", random_numbers::let_go),
    ("histograms count the exits of a run by reason", histograms::histograms),
];

pub(super) fn recorder(system: &Kvm, entries: u32) -> Result<Tiny> {
    let mut vm = Tiny::new(system)?;
    vm.register(all_traps()?, entries, CaptureMode::Record)?;
    Ok(vm)
}

pub(super) fn drain(vm: &mut Tiny) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    while let Some(entry) = vm.capture()?.recorded()? {
        entries.push(entry);
    }
    Ok(entries)
}

pub(super) fn feed(vm: &mut Tiny, entries: &[Entry]) -> Result<()> {
    for entry in entries {
        ensure!(vm.capture()?.feed(entry)?, "no room for a value");
    }
    Ok(())
}

fn values(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.value).collect()
}

fn recorded_values(system: &Kvm) -> Result<()> {
    for ring in RINGS {
        let mut vm = recorder(system, 1024)?;
        vm.start(guest::rdtsc(), ring, 500, 0)?;
        vm.finish()?;
        let entries = drain(&mut vm)?;
        ensure!(entries.len() == 500, "{} of 500 values recorded", entries.len());
        ensure!(values(&entries) == vm.results(500)?, "other values than the guest's");
        ensure!(entries.is_sorted_by(|a, b| a.value < b.value), "the virtual TSC did not rise");
        ensure!(
            entries.iter().all(|e| e.trap == Trap::Rdtsc && e.value % (1 << QUANTUM) == 0),
            "odd entries"
        );

        ensure!(entries.iter().zip(0..).all(|(e, n)| e.ordinal == n), "ordinals");
    }
    Ok(())
}

fn rdtscp(system: &Kvm) -> Result<()> {
    for ring in RINGS {
        let mut vm = recorder(system, 1024)?;
        vm.capture()?.set_tsc_aux(0x1234_5678_9abc);
        vm.start(guest::rdtscp(), ring, 100, 0)?;
        vm.finish()?;
        let entries = drain(&mut vm)?;
        let results = vm.results(200)?;
        ensure!(values(&entries) == results.iter().copied().step_by(2).collect::<Vec<_>>(), "other values");
        if entries.iter().all(|e| e.trap == Trap::Rdtsc) {
            bail!(Skipped(
                "this CPU reports RDTSCP as RDTSC (QEMU's software emulation does): ECX is not set"
            ));
        }
        ensure!(entries.iter().all(|e| e.trap == Trap::Rdtscp), "kinds");
        ensure!(
            results.iter().skip(1).step_by(2).all(|aux| *aux == 0x5678_9abc),
            "TSC_AUX {:#x}",
            results[1]
        );
    }
    Ok(())
}

/// Records the mixed program.
fn mixed(system: &Kvm, ring: Ring, count: u64) -> Result<(Tiny, Vec<Entry>)> {
    let mut vm = recorder(system, 4096)?;
    vm.start_with(guest::mixed(), ring, &kvm_regs { rsi: count, ..kvm_regs::default() }, 0x100)?;
    vm.finish()?;
    let entries = drain(&mut vm)?;
    ensure!(entries.len() as u64 == 3 * count, "{} values", entries.len());
    Ok((vm, entries))
}

fn replayer(system: &Kvm, ring: Ring, count: u64) -> Result<Tiny> {
    let mut vm = Tiny::new(system)?;
    vm.register(all_traps()?, 4096, CaptureMode::Replay)?;
    vm.start_with(guest::mixed(), ring, &kvm_regs { rsi: count, ..kvm_regs::default() }, 0x100)?;
    Ok(vm)
}

fn replay(system: &Kvm) -> Result<()> {
    for ring in RINGS {
        let (mut one, entries) = mixed(system, ring, 400)?;
        let mut two = replayer(system, ring, 400)?;
        feed(&mut two, &entries)?;
        two.finish()?;
        ensure!(one.results(1200)? == two.results(1200)?, "other values");
        ensure!(one.results(1200)? == values(&entries), "other values than recorded");
        ensure!(one.vcpu.get_regs()? == two.vcpu.get_regs()?, "other registers");
        let (one, two) = (one.capture()?, two.capture()?);
        ensure!((one.digest(), one.served()) == (two.digest(), two.served()), "other digest");
    }
    Ok(())
}

fn empty(system: &Kvm) -> Result<()> {
    let (one, entries) = mixed(system, Ring::Kernel, 50)?;
    let mut two = replayer(system, Ring::Kernel, 50)?;
    for (number, entry) in entries.iter().enumerate() {
        ensure!(two.run()? == End::Paused(Pause::Empty), "no pause at value {number}");
        ensure!(two.capture()?.served() == number as u64, "{} served", two.capture()?.served());
        ensure!(two.run()? == End::Paused(Pause::Empty), "no pause the second time");
        feed(&mut two, &[*entry])?;
    }
    two.finish()?;
    ensure!(one.results(150)? == two.results(150)?, "other values");
    Ok(())
}

fn diverged(system: &Kvm) -> Result<()> {
    let (_, entries) = mixed(system, Ring::User, 10)?;
    let mut two = replayer(system, Ring::User, 10)?;
    feed(&mut two, &entries[..7])?;
    feed(&mut two, &entries[8..])?;
    ensure!(two.run()? == End::Paused(Pause::Diverged), "the missing value went unnoticed");
    ensure!(two.run()? == End::Paused(Pause::Diverged), "it went unnoticed the second time");
    ensure!(two.capture()?.served() == 7, "{} served", two.capture()?.served());
    Ok(())
}

fn full(system: &Kvm) -> Result<()> {
    let mut vm = recorder(system, 16)?;
    vm.start(guest::rdtsc(), Ring::User, 100, 0)?;
    let mut entries = Vec::new();
    for _ in 0..6 {
        ensure!(vm.run()? == End::Paused(Pause::Full), "no pause");
        let some = drain(&mut vm)?;
        ensure!(some.len() == 16, "{} in the ring", some.len());
        entries.extend(some);
    }
    vm.finish()?;
    entries.extend(drain(&mut vm)?);
    ensure!(values(&entries) == vm.results(100)?, "other values");
    Ok(())
}

fn limit(system: &Kvm) -> Result<()> {
    let mut vm = recorder(system, 1024)?;
    vm.start(guest::rdtsc(), Ring::Kernel, 10, 0)?;
    vm.capture()?.set_limit(0);
    for _ in 0..3 {
        ensure!(vm.run()? == End::Paused(Pause::Limit), "no pause");
        ensure!(vm.vcpu.get_regs()?.rip == guest::rdtsc(), "not in front of the instruction");
    }
    ensure!(vm.capture()?.served() == 0 && drain(&mut vm)?.is_empty(), "served all the same");
    vm.capture()?.set_limit(7);
    ensure!(vm.run()? == End::Paused(Pause::Limit), "no pause at the limit");
    ensure!(vm.capture()?.served() == 7, "{} served", vm.capture()?.served());
    vm.capture()?.set_limit(u64::MAX);
    vm.finish()?;
    ensure!(drain(&mut vm)?.len() == 10, "values are missing");
    Ok(())
}

/// Runs a program with an interrupt waiting, and checks that it is taken at `after`, after one read.
fn interrupted_at(system: &Kvm, program: u64, after: u64, mode: CaptureMode) -> Result<()> {
    let mut vm = Tiny::new(system)?;
    vm.register(all_traps()?, 16, mode)?;
    if mode == CaptureMode::Replay {
        feed(&mut vm, &[Entry { trap: Trap::Rdtsc, value: 0x11_2233_4455, ordinal: 0 }])?;
    }
    vm.start(program, Ring::Kernel, 0, 0)?;
    vm.want_window(true);
    let end = vm.run()?;
    ensure!(end == End::Window(after), "{end:x?} instead of a window at {after:#x}");
    ensure!(vm.capture()?.served() == 1, "{} served", vm.capture()?.served());
    vm.inject()?;
    ensure!(vm.run()? == End::Done(guest::BY_INTERRUPT), "the interrupt was lost");
    let (rip, rax) = (vm.word(guest::CAUGHT)?, vm.word(guest::CAUGHT + 8)?);
    ensure!(rip == after, "interrupted at {rip:#x} instead of {after:#x}");
    let value = match mode {
        CaptureMode::Replay => 0x2233_4455,
        _ => drain(&mut vm)?.first().context("nothing recorded")?.value & 0xffff_ffff,
    };
    ensure!(rax == value, "RAX {rax:#x} instead of {value:#x}");
    Ok(())
}

fn sti(system: &Kvm) -> Result<()> {
    for mode in [CaptureMode::Record, CaptureMode::Replay] {
        interrupted_at(system, guest::sti(), guest::after_sti(), mode)?;
    }
    Ok(())
}

fn mov_ss(system: &Kvm) -> Result<()> {
    // Interrupts are off until the shadow has begun, and then there is no telling; so the window is asked for by a
    // pause in the shadow.
    let mut vm = recorder(system, 16)?;
    vm.start(guest::mov_ss(), Ring::Kernel, 0, INTERRUPTS)?;
    vm.capture()?.set_limit(0);
    ensure!(vm.run()? == End::Paused(Pause::Limit), "no pause");
    ensure!(vm.vcpu.get_vcpu_events()?.interrupt.shadow != 0, "no shadow at the pause");
    ensure!(vm.vcpu.get_kvm_run().ready_for_interrupt_injection == 0, "ready in the shadow");
    vm.capture()?.set_limit(u64::MAX);
    vm.want_window(true);
    let after = guest::after_mov_ss();
    let end = vm.run()?;
    ensure!(end == End::Window(after), "{end:x?} instead of a window at {after:#x}");
    vm.inject()?;
    ensure!(vm.run()? == End::Done(guest::BY_INTERRUPT), "the interrupt was lost");
    ensure!(vm.word(guest::CAUGHT)? == after, "interrupted at {:#x}", vm.word(guest::CAUGHT)?);
    Ok(())
}

fn page_end(system: &Kvm) -> Result<()> {
    for ring in RINGS {
        for code in [&[0x0f, 0x31][..], &[0x0f, 0x01, 0xf9]] {
            for there in [true, false] {
                let mut vm = recorder(system, 16)?;
                let start = EDGE - code.len() as u64;
                vm.write(start, code)?;
                // jmp to the landing place, relative.
                let distance = (guest::landing() as i64 - (EDGE as i64 + 5)) as i32;
                vm.write(EDGE, &[&[0xe9][..], &distance.to_le_bytes()].concat())?;
                if !there {
                    vm.unmap(EDGE)?;
                }
                vm.start_with(guest::jump(), ring, &kvm_regs { rax: start, ..kvm_regs::default() }, 0)?;
                let end = vm.run()?;
                let value = drain(&mut vm)?.first().context("nothing recorded")?.value;
                if there {
                    ensure!((end, vm.word(RESULTS)?) == (End::Done(0), value), "{end:x?}");
                } else {
                    // The fault is of the next instruction: this one has happened.
                    ensure!(end == End::Done(guest::BY_FAULT), "{end:x?}");
                    let (rip, rax) = (vm.word(guest::CAUGHT)?, vm.word(guest::CAUGHT + 8)?);
                    ensure!((rip, rax) == (EDGE, value & 0xffff_ffff), "{rip:#x} {rax:#x}");
                }
            }
        }
    }
    Ok(())
}

fn prefixes(system: &Kvm) -> Result<()> {
    for ring in RINGS {
        let mut vm = recorder(system, 16)?;
        vm.start(guest::prefixes(), ring, 0, 0)?;
        vm.finish()?;
        let low: Vec<_> = values(&drain(&mut vm)?).iter().map(|value| value & 0xffff_ffff).collect();
        ensure!(low.len() == 4 && low == vm.results(4)?, "{low:x?}");
    }
    Ok(())
}

fn single_step(system: &Kvm) -> Result<()> {
    let mut vm = recorder(system, 16)?;
    vm.start(guest::step(), Ring::Kernel, 0, 0)?;
    let end = vm.run()?;
    ensure!(end == End::Done(guest::BY_FAULT), "{end:x?}");
    let rip = vm.word(guest::CAUGHT)?;
    ensure!(rip == guest::after_step(), "#DB at {rip:#x} instead of {:#x}", guest::after_step());
    ensure!(drain(&mut vm)?.len() == 1, "not once");
    Ok(())
}

fn faults(system: &Kvm) -> Result<()> {
    const TSD: u64 = 4;
    const PCE: u64 = 0x100;
    let cases = [
        (guest::rdtsc(), Ring::User, TSD, true),
        (guest::rdtscp(), Ring::User, TSD, true),
        (guest::rdtsc(), Ring::Kernel, TSD, false),
        (guest::rdpmc(), Ring::User, 0, true),
        (guest::rdpmc(), Ring::User, PCE, false),
        (guest::rdpmc(), Ring::Kernel, 0, false),
    ];
    for (program, ring, cr4, faults) in cases {
        let mut vm = recorder(system, 16)?;
        vm.start_with(program, ring, &kvm_regs { rsi: 1, ..kvm_regs::default() }, cr4)?;
        let end = vm.run()?;
        let wanted = if faults { guest::BY_FAULT } else { 0 };
        ensure!(end == End::Done(wanted), "{end:x?} of {program:#x} in {ring:?} with CR4 {cr4:#x}");
        ensure!(drain(&mut vm)?.is_empty() == faults, "recorded though it faulted, or not though it did not");
    }
    Ok(())
}

fn bad_counter(system: &Kvm) -> Result<()> {
    let mut vm = recorder(system, 16)?;
    vm.start(guest::bad_rdpmc(), Ring::Kernel, 0, 0)?;
    let end = vm.run()?;
    ensure!(end == End::Done(guest::BY_FAULT), "{end:x?}");
    ensure!(drain(&mut vm)?.is_empty(), "recorded though it faulted");
    Ok(())
}

/// The handler of the signal that [`signals`] sends: it only has to be there.
extern "C" fn nothing(_signal: libc::c_int) {}

fn signals(system: &Kvm) -> Result<()> {
    let mut vm = recorder(system, 65536)?;
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t) };
    // SAFETY: no conditions.
    let me = unsafe { libc::pthread_self() };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let count = 4000;
    vm.start(guest::rdtsc(), Ring::User, count, INTERRUPTS)?;
    let (mut interrupted, mut entries) = (0, Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: the thread waits for this one.
                unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        let result = (|| loop {
            match vm.run()? {
                End::Interrupted => {
                    interrupted += 1;
                    entries.extend(drain(&mut vm)?);
                }
                End::Done(0) => break Ok(()),
                end => bail!("{end:x?}"),
            }
        })();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    })?;
    entries.extend(drain(&mut vm)?);
    ensure!(interrupted > 10, "only {interrupted} signals came");
    ensure!(values(&entries) == vm.results(count as usize)?, "other values, after {interrupted} signals");
    Ok(())
}

/// Whether a VM reads a TSC that the module did not make: the low bits are not all zero.
fn native(vm: &mut Tiny) -> Result<()> {
    vm.start(guest::rdtsc(), Ring::User, 200, 0)?;
    vm.finish()?;
    let results = vm.results(200)?;
    ensure!(
        results.iter().any(|value| value % (1 << QUANTUM) != 0),
        "the TSC is not the native one: {:x?}",
        &results[..8]
    );
    ensure!(results.is_sorted(), "the native TSC went back");
    Ok(())
}

fn unregistered(system: &Kvm) -> Result<()> {
    let mut registered = recorder(system, 1024)?;
    let mut other = Tiny::new(system)?;
    for _ in 0..3 {
        native(&mut other)?;
        registered.start(guest::rdtsc(), Ring::User, 100, 0)?;
        registered.finish()?;
        ensure!(drain(&mut registered)?.len() == 100, "the registered VM is no longer captured");
    }
    Ok(())
}

fn let_go(system: &Kvm) -> Result<()> {
    let mut vm = recorder(system, 1024)?;
    for _ in 0..3 {
        vm.start(guest::mixed(), Ring::Kernel, 100, 0)?;
        vm.finish()?;
        ensure!(drain(&mut vm)?.len() == 300, "not captured");
        vm.capture()?.set_mode(CaptureMode::Off)?;
        native(&mut vm)?;
        vm.capture()?.set_mode(CaptureMode::Record)?;
        vm.start(guest::rdtsc(), Ring::Kernel, 100, 0)?;
        vm.finish()?;
        vm.capture = None;
        native(&mut vm)?;
        vm.register(all_traps()?, 1024, CaptureMode::Record)?;
    }
    Ok(())
}

fn let_go_running(system: &Kvm) -> Result<()> {
    for spin in 0..5 {
        let mut vm = recorder(system, 65536)?;
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t) };
        // SAFETY: no conditions.
        let me = unsafe { libc::pthread_self() };
        // Interrupts on: Bochs does not show a guest with RFLAGS.IF clear the interrupts that wait at an entry,
        // and this one is entered again without any being let in before.
        vm.start(guest::spin(), Ring::User, 0, INTERRUPTS)?;
        let capture = vm.capture.take().context("not registered")?;
        let end = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(20 + 10 * spin));
                drop(capture);
                std::thread::sleep(std::time::Duration::from_millis(20));
                // SAFETY: the thread waits for this one.
                unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
            });
            vm.run()
        })?;
        ensure!(end == End::Interrupted, "{end:x?}");
        native(&mut vm)?;
    }
    Ok(())
}

fn go_live(system: &Kvm) -> Result<()> {
    let mut vm = Tiny::new(system)?;
    vm.register(all_traps()?, 1024, CaptureMode::Replay)?;
    let entries: Vec<_> = (0..100)
        .map(|n| Entry { trap: Trap::Rdtsc, value: 0x5_0000_0000_0000 + n * 16_000, ordinal: n })
        .collect();
    feed(&mut vm, &entries)?;
    vm.start(guest::rdtsc(), Ring::User, 200, 0)?;
    ensure!(vm.run()? == End::Paused(Pause::Empty), "no pause at the end of the log");
    let begun = std::time::Instant::now();
    vm.capture()?.set_mode(CaptureMode::Record)?;
    vm.finish()?;
    let took = begun.elapsed().as_nanos() as u64;
    let results = vm.results(200)?;
    ensure!(results.is_sorted(), "the virtual TSC went back");
    let (last, first, end) = (results[99], results[100], results[199]);
    ensure!(last == entries[99].value, "the last replayed value");
    ensure!(end - last <= took, "the guest saw {} ns pass in {took} ns", end - last);
    ensure!(end > first, "the clock stands");
    Ok(())
}
