//! What an instruction costs that the kernel module captures.
//!
//! Loops in one tiny VM, in turn, so that the ratios hold on any host: RDTSC served in the kernel; RDTSC taken to
//! user space, where a VMM does the same job ([`user_space`]); the same with as little as can be, which serves nothing
//! but this loop ([`lean`]); CPUID, which KVM serves in the kernel itself.

mod length;
mod user_space;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvm_ioctls::{Kvm, SyncReg};
use serde::Serialize;
use tandem_kmod_brain::abi::Pause;
use tandem_tests::kmod::guest;
use tandem_tests::kmod::vm::{End, Ring, Tiny, all_traps};
use tandem_vmm::machine::cpu::capture::{CaptureMode, GUEST_KHZ};

use user_space::UserSpace;

/// An RDTSC without prefixes is two bytes long.
const RDTSC_LEN: u64 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Instructions in each turn.
    #[arg(long, default_value_t = 2_000)]
    instructions: u32,
    /// Turns of each kind; the middle one counts.
    #[arg(long, default_value_t = 9)]
    turns: u32,
}

/// The line of JSON. Times are of one instruction, in microseconds.
#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    rdtsc_kernel_us: f64,
    rdtsc_user_us: f64,
    rdtsc_lean_user_us: f64,
    cpuid_us: f64,
    rdtsc_kernel_over_user: f64,
    rdtsc_kernel_over_lean_user: f64,
    rdtsc_over_cpuid: f64,
    rdtsc_traced_over_untraced: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let system = Kvm::new().context("cannot open /dev/kvm")?;
    let mut vm = Tiny::new(&system)?;
    // A turn's values fit into the ring, so that nothing else is measured.
    vm.register(all_traps()?, args.instructions.max(16).next_power_of_two(), CaptureMode::Record)?;
    let mut user_space = UserSpace::new(args.instructions as usize)?;
    ensure!(args.turns > 0 && args.instructions > 0, "nothing to measure");
    let mut times: [Vec<Duration>; 5] = Default::default();
    for _ in 0..args.turns {
        times[0].push(in_kernel(&mut vm, guest::tight(), args.instructions)?);
        times[1].push(in_user_space(&mut vm, &mut user_space, args.instructions)?);
        times[2].push(in_kernel(&mut vm, guest::cpuid(), args.instructions)?);
        vm.capture()?.set_tracing(true)?;
        times[3].push(in_kernel(&mut vm, guest::tight(), args.instructions)?);
        vm.capture()?.set_tracing(false)?;
        times[4].push(lean(&mut vm, args.instructions)?);
    }
    let [kernel, user, cpuid, traced, lean] = times.map(|mut turns| {
        turns.sort_unstable();
        turns[turns.len() / 2].as_secs_f64() * 1e6 / f64::from(args.instructions)
    });
    let figures = Figures {
        bench: "kmod",
        rdtsc_kernel_us: round(kernel),
        rdtsc_user_us: round(user),
        rdtsc_lean_user_us: round(lean),
        cpuid_us: round(cpuid),
        rdtsc_kernel_over_user: round(kernel / user),
        rdtsc_kernel_over_lean_user: round(kernel / lean),
        rdtsc_over_cpuid: round(kernel / cpuid),
        rdtsc_traced_over_untraced: round(traced / kernel),
    };
    println!("RDTSC in the kernel                       {kernel:8.2} µs");
    println!("RDTSC in user space, the same job         {user:8.2} µs");
    println!("RDTSC in user space, RIP + 2 and no log   {lean:8.2} µs");
    println!("CPUID in the kernel                       {cpuid:8.2} µs");
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn in_kernel(vm: &mut Tiny, program: u64, count: u32) -> anyhow::Result<Duration> {
    vm.capture()?.set_mode(CaptureMode::Record)?;
    vm.start(program, Ring::Kernel, count.into(), 0)?;
    let begun = Instant::now();
    vm.finish()?;
    Ok(begun.elapsed())
}

fn in_user_space(vm: &mut Tiny, vmm: &mut UserSpace, count: u32) -> anyhow::Result<Duration> {
    vm.capture()?.set_mode(CaptureMode::Record)?;
    vm.capture()?.set_limit(0);
    vmm.clear();
    vm.vcpu.set_sync_valid_reg(SyncReg::Register);
    vm.vcpu.set_sync_valid_reg(SyncReg::VcpuEvents);
    vm.start(guest::tight(), Ring::Kernel, count.into(), 0)?;
    let begun = Instant::now();
    let served = vmm.run(vm)?;
    let took = begun.elapsed();
    vm.vcpu.clear_sync_valid_reg(SyncReg::Register);
    vm.vcpu.clear_sync_valid_reg(SyncReg::VcpuEvents);
    ensure!(served == count, "{served} of {count} instructions came to user space");
    Ok(took)
}

/// The least that can be: right for this loop only, and without a trace.
fn lean(vm: &mut Tiny, count: u32) -> anyhow::Result<Duration> {
    vm.capture()?.set_mode(CaptureMode::Record)?;
    vm.capture()?.set_limit(0);
    vm.vcpu.set_sync_valid_reg(SyncReg::Register);
    vm.start(guest::tight(), Ring::Kernel, count.into(), 0)?;
    let (begun, mut taken) = (Instant::now(), 0);
    loop {
        match vm.run()? {
            End::Done(0) => break,
            End::Paused(Pause::Limit) => {
                let tsc = begun.elapsed().as_nanos() as u64 * u64::from(GUEST_KHZ) / 1_000_000;
                let registers = &mut vm.vcpu.sync_regs_mut().regs;
                registers.rax = tsc & 0xffff_ffff;
                registers.rdx = tsc >> 32;
                registers.rip += RDTSC_LEN;
                vm.vcpu.set_sync_dirty_reg(SyncReg::Register);
                taken += 1;
            }
            end => anyhow::bail!("the guest ended otherwise: {end:x?}"),
        }
    }
    let took = begun.elapsed();
    vm.vcpu.clear_sync_valid_reg(SyncReg::Register);
    ensure!(taken == count, "{taken} of {count} instructions came to user space");
    Ok(took)
}
