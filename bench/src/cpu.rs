//! CPU time: of processes, what a load costs, however busy the machine is; and of cores.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of all threads of a process that runs.
///
/// # Errors
/// When it does not run, or is another user's.
pub(crate) fn of_process(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    let pid = libc::pid_t::try_from(pid).context("no process")?;
    // SAFETY: the clock's number is valid for the call.
    let refused = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    anyhow::ensure!(
        refused == 0,
        "process {pid} has no CPU clock: {}",
        std::io::Error::from_raw_os_error(refused)
    );
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for the call.
    let done = unsafe { libc::clock_gettime(clock, &raw mut time) };
    anyhow::ensure!(done == 0, "process {pid}: {}", std::io::Error::last_os_error());
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

/// CPU time so far of this process (`RUSAGE_SELF`), or of its children that have ended (`RUSAGE_CHILDREN`).
pub(crate) fn used(by: libc::c_int) -> Duration {
    // SAFETY: all zeros is a valid rusage, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(by, &raw mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64))
        .sum()
}

/// What the kernel has counted of `cores` ("cpu": all together; "cpu0": the first) in `/proc/stat`, in ticks: user, nice, system, idle,
/// waiting for a disk, two kinds of interrupts, stolen. Guests' time is part of the first two (proc(5)).
pub(crate) fn ticks(stat: &str, cores: &str) -> Option<[u64; 8]> {
    let mut lines = stat.lines().map(str::split_whitespace);
    let fields = lines.find_map(|mut words| (words.next()? == cores).then_some(words))?;
    let ticks: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
    ticks.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_computes_has_computed() {
        let me = std::process::id();
        let (before, begun) = (of_process(me).unwrap(), std::time::Instant::now());
        while begun.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(of_process(me).unwrap() > before);
        assert!(of_process(u32::MAX).is_err());
    }
}
