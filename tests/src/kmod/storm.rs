//! VMMs that come and go in all ways at once.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;
use tandem_vmm::machine::cpu::capture::{Capture, CaptureMode, probe};

use super::guest;
use super::vm::{Ring, Tiny, all_traps};
use crate::random::Random;

/// One VMM's life: it registers, runs, lets go and begins again, until it is killed.
fn live(seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let system = Kvm::new()?;
    loop {
        let mut vm = Tiny::new(&system)?;
        let mode = if random.within(0..=1) == 0 { CaptureMode::Record } else { CaptureMode::Replay };
        vm.register(all_traps()?, 1 << random.within(4..=14), mode)?;
        for _ in 0..random.within(1..=5) {
            let count = random.within(1..=300);
            vm.start(guest::mixed(), Ring::Kernel, count, 0)?;
            // A ring that is full or empty ends the run; that is as good as any end.
            vm.run()?;
            match random.within(0..=6) {
                0 => vm.capture()?.set_tracing(true)?,
                1 => vm.capture()?.set_mode(CaptureMode::Off)?,
                2 => vm.capture()?.set_mode(CaptureMode::Record)?,
                3 => vm.capture = None,
                4 => drop(Capture::register(vm.vcpu.as_raw_fd(), all_traps()?)),
                5 => {
                    // The VM goes first, the registration after it.
                    let capture = vm.capture.take();
                    drop(vm);
                    drop(capture);
                    break;
                }
                _ => {}
            }
            if vm.capture.is_none() {
                vm.register(all_traps()?, 64, CaptureMode::Record)?;
            }
        }
    }
}

fn spawn(seed: u64) -> Result<libc::pid_t> {
    // SAFETY: this process has one thread when a storm begins.
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let error = live(seed).err();
        let status = error.map_or(0, |error| {
            #[expect(clippy::print_stderr, reason = "the child has nobody else to tell")]
            {
                eprintln!("a VMM of the storm failed: {error:#}");
            }
            1
        });
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) };
    }
    Ok(child)
}

/// `vmms` at once for `length`, killed at random; returns how many lived.
///
/// # Errors
/// When one ended by itself, or the module counts a vCPU that is gone.
pub fn storm(vmms: usize, length: Duration, seed: u64) -> Result<u64> {
    let mut random = Random::new(seed);
    let end = Instant::now() + length;
    let mut alive = (0..vmms).map(|_| spawn(random.next())).collect::<Result<Vec<_>>>()?;
    let mut lives = vmms as u64;
    let mut failed = 0;
    while Instant::now() < end {
        std::thread::sleep(random.micros(1_000..=80_000));
        let victim = random.within(0..=vmms as u64 - 1) as usize;
        failed += kill(alive[victim]);
        alive[victim] = spawn(random.next())?;
        lives += 1;
    }
    for child in alive {
        failed += kill(child);
    }
    ensure!(failed == 0, "{failed} VMMs ended before they were killed");
    // The last reference to a VM may be dropped a moment after its process is gone.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let vcpus = probe().context("the module after the storm")?.vcpus;
        if vcpus == 0 {
            return Ok(lives);
        }
        ensure!(Instant::now() < deadline, "{vcpus} vCPUs are still registered after all VMMs are gone");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Kills one and buries it; 1 if it had ended by itself.
fn kill(child: libc::pid_t) -> u32 {
    let mut status = 0;
    // SAFETY: a child of this process that nobody else waits for.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, &raw mut status, 0);
    }
    u32::from(!libc::WIFSIGNALED(status))
}
