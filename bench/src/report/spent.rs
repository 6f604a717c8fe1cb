//! Where the time of the core goes on which a VM and its clients run, from what its kernel counts in ticks.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::cpu;

/// CPU seconds since the start of a process and of its core; as the difference of two, by the time between them,
/// CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Spent {
    /// The vCPU thread in the guest.
    pub(crate) guest: f64,
    /// The vCPU thread in the VMM: devices, the log, forced stops.
    pub(crate) vmm: f64,
    /// The vCPU thread in the host's kernel: KVM, faults of the dirty log, system calls.
    pub(crate) kernel: f64,
    /// All other threads of the VMM: outputs, acks, disks, taps.
    pub(crate) threads: f64,
    /// Everything else on the core: clients, interrupts, the log's network.
    pub(crate) others: f64,
    /// Nothing to do, or only what is done when there is nothing else to do.
    pub(crate) idle: f64,
}

impl Spent {
    /// By process `pid`, which runs on `core`, so far; none if it has ended or the kernel does not say.
    pub(crate) fn so_far(pid: u32, core: usize) -> Option<Self> {
        // SAFETY: takes no pointers.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let mut tasks = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            // A thread may end meanwhile.
            tasks.extend(fs::read_to_string(task.path().join("stat")));
        }
        Self::read(&fs::read_to_string("/proc/stat").ok()?, core, pid, &tasks, ticks)
    }

    /// From `/proc/stat` and the `stat` of each thread of `pid`.
    fn read(machine: &str, core: usize, pid: u32, tasks: &[String], ticks: f64) -> Option<Self> {
        let threads: Vec<_> = tasks.iter().filter_map(|stat| Thread::read(stat)).collect();
        let main = pid.to_string();
        let vcpu = threads
            .iter()
            .find(|thread| thread.name == "tandem-vcpu")
            .or_else(|| threads.iter().find(|thread| thread.id == main))?;
        let all: f64 = threads.iter().map(|thread| thread.user + thread.system).sum();
        let spent = cpu::ticks(machine, &format!("cpu{core}"))?;
        let [user, nice, system, idle, wait, irq, softirq, _] = spent.map(|ticks| ticks as f64);
        let in_ticks = Self {
            guest: vcpu.guest,
            vmm: vcpu.user - vcpu.guest,
            kernel: vcpu.system,
            threads: all - vcpu.user - vcpu.system,
            others: user + system + irq + softirq - all,
            idle: idle + wait + nice,
        };
        Some(in_ticks.map(|value| value / ticks))
    }

    /// What came after `before`, by `seconds`.
    pub(crate) fn since(&self, before: &Self, seconds: f64) -> Self {
        Self {
            guest: self.guest - before.guest,
            vmm: self.vmm - before.vmm,
            kernel: self.kernel - before.kernel,
            threads: self.threads - before.threads,
            others: self.others - before.others,
            idle: self.idle - before.idle,
        }
        // What one clock counts before and the other after a look is no time.
        .map(|value| value.max(0.0) / seconds)
    }

    fn map(self, each: impl Fn(f64) -> f64) -> Self {
        let Self { guest, vmm, kernel, threads, others, idle } = self;
        let [guest, vmm, kernel, threads, others, idle] =
            [guest, vmm, kernel, threads, others, idle].map(each);
        Self { guest, vmm, kernel, threads, others, idle }
    }
}

/// A thread's `stat`, in ticks.
struct Thread<'a> {
    id: &'a str,
    name: &'a str,
    user: f64,
    system: f64,
    guest: f64,
}

impl<'a> Thread<'a> {
    fn read(stat: &'a str) -> Option<Self> {
        // The name, in parentheses, may have blanks and parentheses of its own.
        let (front, fields) = stat.rsplit_once(')')?;
        let (id, name) = front.split_once(" (")?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let field = |index: usize| fields.get(index)?.parse::<f64>().ok();
        Some(Self { id, name, user: field(11)?, system: field(12)?, guest: field(40)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(id: u32, name: &str, user: u32, system: u32, guest: u32) -> String {
        let zeros = "0 ".repeat(27);
        format!("{id} ({name}) S 1 1 1 0 -1 0 0 0 0 0 {user} {system} {zeros}{guest} 0 0 0")
    }

    #[test]
    fn the_vcpu_thread_is_told_from_the_others_and_from_the_machine() {
        let machine = "cpu  900 0 0 0 0 0 0 0 0 0\ncpu0 500 20 100 300 50 5 25 0 200 0\ncpu1 1 2\n";
        let tasks = [stat(7, "tandem", 30, 10, 0), stat(9, "tandem-vcpu", 250, 40, 200)];
        let spent = Spent::read(machine, 0, 7, &tasks, 100.0).unwrap();
        let told = Spent { guest: 2.0, vmm: 0.5, kernel: 0.4, threads: 0.4, others: 3.0, idle: 3.7 };
        assert_eq!(spent, told);
        let alone = Spent::read(machine, 0, 7, &tasks[..1], 100.0).unwrap();
        assert_eq!((alone.vmm, alone.kernel, alone.threads), (0.3, 0.1, 0.0));
        assert_eq!(Spent::read("", 0, 7, &tasks, 100.0), None);
        assert_eq!(Spent::read(machine, 0, 8, &[], 100.0), None);
    }

    #[test]
    fn the_difference_of_two_looks_is_in_cpus() {
        let before = Spent { guest: 1.0, idle: 2.0, ..Spent::default() };
        let after = Spent { guest: 2.0, vmm: 0.5, idle: 1.9, ..Spent::default() };
        let spent = after.since(&before, 2.0);
        assert_eq!((spent.guest, spent.vmm, spent.idle), (0.5, 0.25, 0.0));
    }
}
