// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! What to do at a captured instruction of one vCPU.
//!
//! The module calls [`Vcpu::trapped`] in KVM's exit path, with interrupts off. The answer is one of four:
//! serve the instruction and go on, leave it to KVM, pause the vCPU in front of it, or nothing of this, for a
//! vCPU whose mode is off.

use super::abi::{Control, MODE_OFF, MODE_RECORD, MODE_REPLAY, Pause};
use super::clock::VirtualTsc;
use super::digest;
use super::instruction::Instruction;
use super::ring::{Consumer, Entry, Producer, Ring, RingError, Slot};
use super::sync::Ordering;
use super::trap::{LEGACY_COUNTERS, RCX, Trap};

/// What is captured, and from where values come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is captured.
    Off,
    /// Values come from the virtual TSC and the host's random numbers, and go to the record ring.
    Record,
    /// Values come from the replay ring.
    Replay,
}

impl Mode {
    /// The mode of that number (`MODE_…`).
    #[must_use]
    pub const fn of(number: u32) -> Option<Self> {
        match number {
            MODE_OFF => Some(Self::Off),
            MODE_RECORD => Some(Self::Record),
            MODE_REPLAY => Some(Self::Replay),
            _ => None,
        }
    }
}

/// The memory shared with the VMM.
#[derive(Clone, Copy, Debug)]
pub struct Area<'a> {
    /// Its first page.
    pub control: &'a Control,
    /// The record ring's entries.
    pub record: &'a [Slot],
    /// The replay ring's entries.
    pub replay: &'a [Slot],
}

impl<'a> Area<'a> {
    /// The ring from the module to the VMM.
    #[must_use]
    pub const fn record_ring(&self) -> Ring<'a> {
        let control = self.control;
        Ring { tail: &control.module.record_tail, head: &control.vmm.record_head, slots: self.record }
    }

    /// The ring from the VMM to the module.
    #[must_use]
    pub const fn replay_ring(&self) -> Ring<'a> {
        let control = self.control;
        Ring { tail: &control.vmm.replay_tail, head: &control.module.replay_head, slots: self.replay }
    }
}

/// What to do with a captured instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The registers hold the result: step over the instruction and enter the guest.
    Served,
    /// KVM deals with it.
    NotOurs,
    /// Leave KVM_RUN; the instruction has not happened.
    Paused(Pause),
}

/// The module's state of one vCPU. Guarded by the vCPU's own lock, which KVM_RUN holds.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu {
    mode: Mode,
    traps: u32,
    clock: VirtualTsc,
    served: u64,
    record: Producer,
    replay: Consumer,
}

impl Vcpu {
    /// A vCPU of which `traps` (by `Trap::bit`) are captured once a mode is set.
    #[must_use]
    pub const fn new(traps: u32, clock: VirtualTsc) -> Self {
        let (record, replay) = (Producer::new(), Consumer::new());
        Self { mode: Mode::Off, traps, clock, served: 0, record, replay }
    }

    /// Traps that are to be intercepted now.
    #[must_use]
    pub const fn armed(&self) -> u32 {
        match self.mode {
            Mode::Off => 0,
            Mode::Record | Mode::Replay => self.traps,
        }
    }

    /// Sets the clock.
    pub const fn set_clock(&mut self, clock: VirtualTsc) {
        self.clock = clock;
    }

    /// Sets the mode and empties both rings. From replay to record, the clock goes on from the last value
    /// replayed.
    pub fn set_mode(&mut self, mode: Mode, host_tsc: u64, area: &Area<'_>) {
        if self.mode == Mode::Replay && mode == Mode::Record {
            self.clock.resume(host_tsc);
        }
        self.mode = mode;
        self.record = Producer::new();
        self.replay = Consumer::new();
        let Control { module, vmm } = area.control;
        for index in [&module.record_tail, &module.replay_head, &vmm.record_head, &vmm.replay_tail] {
            index.store(0, Ordering::Relaxed);
        }
        vmm.limit.store(u64::MAX, Ordering::Relaxed);
        module.pause.store(Pause::None as u32, Ordering::Release);
    }

    /// Decides on an instruction that the guest stands at, and executes it if it is to be served. `host` gives what
    /// the host has to say, if it is asked: its TSC, or random bits for an instruction that reads such.
    pub fn trapped(
        &mut self,
        instruction: &mut Instruction<'_>,
        host: impl FnOnce() -> u64,
        area: &Area<'_>,
    ) -> Verdict {
        let trap = instruction.trap;
        if self.armed() & trap.bit() == 0
            || (trap == Trap::Rdpmc && instruction.registers[RCX] as u32 as u64 >= LEGACY_COUNTERS)
        {
            return Verdict::NotOurs;
        }
        let control = area.control;
        let value = if self.served >= control.vmm.limit.load(Ordering::Relaxed) {
            Err(Pause::Limit)
        } else {
            match self.mode {
                Mode::Off => return Verdict::NotOurs,
                Mode::Record => self.record(instruction, host, area),
                Mode::Replay => self.replay(trap, area),
            }
        };
        match value {
            Ok(value) => {
                self.serve(instruction, value, control);
                Verdict::Served
            }
            Err(pause) => {
                control.module.pause_trap.store(trap.number().into(), Ordering::Relaxed);
                control.module.pause.store(pause as u32, Ordering::Release);
                Verdict::Paused(pause)
            }
        }
    }

    fn record(
        &mut self,
        instruction: &Instruction<'_>,
        host: impl FnOnce() -> u64,
        area: &Area<'_>,
    ) -> Result<u64, Pause> {
        let trap = instruction.trap;
        let value = if trap.reads_tsc() {
            self.clock.read(host())
        } else if trap.is_random() {
            host() & instruction.mask()
        } else {
            0
        };
        let entry = Entry { trap, value, ordinal: self.served };
        match self.record.push(&area.record_ring(), &entry) {
            Ok(()) => Ok(value),
            Err(RingError::Wait) => Err(Pause::Full),
            Err(RingError::Corrupt) => Err(Pause::Corrupt),
        }
    }

    fn replay(&mut self, trap: Trap, area: &Area<'_>) -> Result<u64, Pause> {
        let ring = area.replay_ring();
        let entry = self.replay.front(&ring).map_err(|error| match error {
            RingError::Wait => Pause::Empty,
            RingError::Corrupt => Pause::Corrupt,
        })?;
        if entry.trap != trap {
            return Err(Pause::Diverged);
        }
        self.replay.release(&ring);
        if trap.reads_tsc() {
            self.clock.replayed(entry.value);
        }
        Ok(entry.value)
    }

    fn serve(&mut self, instruction: &mut Instruction<'_>, value: u64, control: &Control) {
        let digest = control.vmm.digest.load(Ordering::Relaxed);
        control.vmm.digest.store(digest::fold(digest, instruction, value), Ordering::Relaxed);
        instruction.execute(value, control.vmm.tsc_aux.load(Ordering::Relaxed));
        self.served = self.served.wrapping_add(1);
        control.module.tsc.store(self.clock.last(), Ordering::Relaxed);
        control.module.served.store(self.served, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::instruction::CARRY;
    use super::super::trap::{ALL_TRAPS, RAX, RDX, Registers};
    use super::*;
    use proptest::prelude::*;

    /// The shared memory, and the VMM's ends of the rings.
    #[derive(Default)]
    struct Shared {
        control: Control,
        record: Vec<Slot>,
        replay: Vec<Slot>,
        recorded: Consumer,
        replayed: Producer,
    }

    impl Shared {
        fn new(entries: usize) -> Self {
            let slots = || (0..entries).map(|_| Slot::default()).collect();
            Self { record: slots(), replay: slots(), ..Self::default() }
        }

        fn area(&self) -> Area<'_> {
            Area { control: &self.control, record: &self.record, replay: &self.replay }
        }

        fn take(&mut self) -> Option<Entry> {
            let area = Area { control: &self.control, record: &self.record, replay: &self.replay };
            let entry = self.recorded.front(&area.record_ring()).ok()?;
            self.recorded.release(&area.record_ring());
            Some(entry)
        }

        fn feed(&mut self, entry: &Entry) {
            let area = Area { control: &self.control, record: &self.record, replay: &self.replay };
            self.replayed.push(&area.replay_ring(), entry).unwrap();
        }

        fn digest(&self) -> u64 {
            self.control.vmm.digest.load(Ordering::Relaxed)
        }
    }

    fn vcpu(mode: Mode, shared: &Shared) -> Vcpu {
        let clock = VirtualTsc::new(1_000_000, 2_000_000, 4, 100, 0).unwrap();
        let mut vcpu = Vcpu::new(ALL_TRAPS, clock);
        vcpu.set_mode(mode, 100, &shared.area());
        vcpu
    }

    /// An instruction at the address `rip`, on a host that says `host`.
    fn trapped(
        vcpu: &mut Vcpu,
        (trap, rip): (Trap, u64),
        host: u64,
        registers: &mut Registers,
        shared: &Shared,
    ) -> Verdict {
        let (destination, size) = if trap.is_random() { (9, 4) } else { (0, 0) };
        let mut flags = 0;
        let mut instruction = Instruction { trap, rip, destination, size, flags: &mut flags, registers };
        let verdict = vcpu.trapped(&mut instruction, || host, &shared.area());
        assert_eq!(flags, if verdict == Verdict::Served && trap.is_random() { CARRY } else { 0 });
        verdict
    }

    #[test]
    fn a_replay_gives_the_recorded_values_registers_and_digest() {
        let (mut one, mut two) = (Shared::new(16), Shared::new(16));
        one.control.vmm.tsc_aux.store(7, Ordering::Relaxed);
        two.control.vmm.tsc_aux.store(7, Ordering::Relaxed);
        let (mut recorder, mut replayer) = (vcpu(Mode::Record, &one), vcpu(Mode::Replay, &two));
        for n in 0..1000_u64 {
            let trap = Trap::ALL[(n % 5) as usize];
            let mut registers = [n; 16];
            registers[RCX] = n % 4;
            let mut again = registers;
            let verdict = trapped(&mut recorder, (trap, n), 100 + n * 9_000_000_000, &mut registers, &one);
            assert_eq!(verdict, Verdict::Served);
            let entry = one.take().unwrap();
            assert_eq!((entry.trap, entry.ordinal), (trap, n));
            if trap.is_random() {
                assert_eq!(
                    (registers[9], entry.value),
                    (entry.value, (100 + n * 9_000_000_000) & 0xffff_ffff)
                );
            } else {
                assert_eq!(registers[RAX] | registers[RDX] << 32, entry.value);
            }
            if trap == Trap::Rdtscp {
                assert_eq!(registers[RCX], 7);
            }
            two.feed(&entry);
            assert_eq!(trapped(&mut replayer, (trap, n), 0, &mut again, &two), Verdict::Served);
            assert_eq!((again, one.digest()), (registers, two.digest()));
        }
        // The clock goes on from the last value replayed, at whatever the TSC of the new host is.
        let last = two.control.module.tsc.load(Ordering::Relaxed);
        replayer.set_mode(Mode::Record, 5, &two.area());
        two.recorded = Consumer::new();
        let mut registers = [0; 16];
        assert_eq!(trapped(&mut replayer, (Trap::Rdtsc, 0), 2005, &mut registers, &two), Verdict::Served);
        assert_eq!(two.take().unwrap().value, last + 1000 / 16 * 16);
    }

    #[test]
    fn a_full_ring_an_empty_one_and_a_limit_pause_before_the_instruction() {
        let mut shared = Shared::new(16);
        let mut recorder = vcpu(Mode::Record, &shared);
        let mut registers = [9; 16];
        for _ in 0..16 {
            assert_eq!(trapped(&mut recorder, (Trap::Rdtsc, 0), 0, &mut registers, &shared), Verdict::Served);
        }
        let (before, digest) = (registers, shared.digest());
        let verdict = trapped(&mut recorder, (Trap::Rdtsc, 0), 0, &mut registers, &shared);
        assert_eq!((verdict, registers, shared.digest()), (Verdict::Paused(Pause::Full), before, digest));
        shared.take().unwrap();
        assert_eq!(trapped(&mut recorder, (Trap::Rdtsc, 0), 0, &mut registers, &shared), Verdict::Served);
        shared.take().unwrap();
        shared.control.vmm.limit.store(17, Ordering::Relaxed);
        let verdict = trapped(&mut recorder, (Trap::Rdtscp, 0), 0, &mut registers, &shared);
        assert_eq!(verdict, Verdict::Paused(Pause::Limit));
        assert_eq!(shared.control.module.pause_trap.load(Ordering::Relaxed), 1);
        assert_eq!(shared.control.module.served.load(Ordering::Relaxed), 17);

        let shared = Shared::new(16);
        let mut replayer = vcpu(Mode::Replay, &shared);
        let verdict = trapped(&mut replayer, (Trap::Rdtsc, 0), 0, &mut registers, &shared);
        assert_eq!(verdict, Verdict::Paused(Pause::Empty));
    }

    #[test]
    fn another_instruction_than_the_recorded_one_is_a_divergence_and_stays_one() {
        let mut shared = Shared::new(16);
        let mut replayer = vcpu(Mode::Replay, &shared);
        shared.feed(&Entry { trap: Trap::Rdtscp, value: 5, ordinal: 0 });
        let mut registers = [1; 16];
        for _ in 0..3 {
            let verdict = trapped(&mut replayer, (Trap::Rdtsc, 0), 0, &mut registers, &shared);
            assert_eq!((verdict, registers), (Verdict::Paused(Pause::Diverged), [1; 16]));
        }
    }

    #[test]
    fn what_is_not_captured_is_left_to_kvm() {
        let shared = Shared::new(16);
        let mut off = vcpu(Mode::Off, &shared);
        assert_eq!(off.armed(), 0);
        let mut registers = [0; 16];
        assert_eq!(trapped(&mut off, (Trap::Rdtsc, 0), 0, &mut registers, &shared), Verdict::NotOurs);
        let mut on = vcpu(Mode::Record, &shared);
        registers[RCX] = LEGACY_COUNTERS;
        assert_eq!(trapped(&mut on, (Trap::Rdpmc, 0), 0, &mut registers, &shared), Verdict::NotOurs);
        on.traps = Trap::Rdtsc.bit();
        assert_eq!(trapped(&mut on, (Trap::Rdtscp, 0), 0, &mut registers, &shared), Verdict::NotOurs);
    }

    proptest! {
        #[test]
        fn a_scribbling_vmm_gets_pauses_and_never_a_panic(
            words: [u32; 5], digest: u64, tags in proptest::collection::vec(any::<(u64, u64)>(), 16),
            mode in 0u32..3, host: u64, registers: [u64; 16],
        ) {
            let mut shared = Shared::new(16);
            let mut vcpu = vcpu(Mode::of(mode).unwrap(), &shared);
            for (value, tag) in tags {
                let trap = Trap::of(tag as u8 % 5).unwrap();
                shared.feed(&Entry { trap, value, ordinal: tag });
            }
            let Control { module, vmm } = &shared.control;
            let indexes = [&module.record_tail, &module.replay_head, &vmm.record_head, &vmm.replay_tail, &module.pause];
            for (index, word) in indexes.iter().zip(words) { index.store(word, Ordering::Relaxed); }
            vmm.digest.store(digest, Ordering::Relaxed);
            let mut registers = registers;
            for trap in Trap::ALL {
                let _ = trapped(&mut vcpu, (trap, 0), host, &mut registers, &shared);
            }
        }
    }
}
