//! High precision event timer (IA-PC HPET Specification 1.0a, section 2.3), for its main counter: a clock in memory.
//!
//! It has the three comparators that the specification asks for at least, but none has a route to an interrupt: the
//! 8254 and the RTC are this machine's timers. Their registers are zero, and writes to them change nothing.
//!
//! Registers in memory can be read without an exit, where a page that KVM shows the guest has what they would say.
//! The page changes at exits only, or the backup's guest would read something else. Between two exits that clock stands
//! still. Where exits are dense a guest has nothing to lose by it. One that computes would see time stand, then jump; it
//! reads its clock seldom, or it waits for it to move, and has an exit for each reading.

use crate::machine::sparing::{Sparing, WINDOW, Window};
use crate::machine::time::VirtualTime;

/// Where the registers lie, guest physical: where every PC has them.
pub const ADDRESS: u64 = 0xfed0_0000;

/// Where the main counter lies, eight bytes long.
pub const COUNTER: u64 = ADDRESS + offset::COUNTER;

/// Bytes that the registers and what is reserved beside them take.
pub const LEN: u64 = 0x1000;

/// Nanoseconds from one count to the next.
const PERIOD: u64 = 10;

/// General capabilities and identification, read-only: the period in femtoseconds, a vendor, a counter of 64 bits, the
/// number of the last comparator, revision 1. Not capable of replacing the legacy interrupts (LEG_RT_CAP is zero).
pub const CAPABILITIES: u64 = (PERIOD * 1_000_000) << 32 | 0x8086 << 16 | 1 << 13 | 2 << 8 | 1;

/// The readings of the counter in a window that make a page worth its while.
const READINGS: u32 = WINDOW / 4;

/// Nanoseconds from exit to exit up to which a guest's exits are dense.
const DENSE: u64 = 500_000;

/// The same, from which on they no longer are: for a page that comes and goes KVM builds page tables anew.
const SPARSE: u64 = 2_000_000;

/// Offsets of the registers that are not always zero.
mod offset {
    pub(super) const CAPABILITIES: u64 = 0x00;
    pub(super) const CONFIGURATION: u64 = 0x10;
    pub(super) const COUNTER: u64 = 0xf0;
}

/// ENABLE_CNF: the counter counts.
const ENABLE: u64 = 1;

/// The timer block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hpet {
    state: State,
}

/// The volatile state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    counts: bool,
    /// What the counter was at `since`, and is while it does not count.
    base: u64,
    since: VirtualTime,
    reads: Sparing,
    probe: Probe,
}

/// How far a guest has come that looks whether the counter counts.
///
/// Linux starts it, reads it, reads the TSC, which CPUID may hide, and reads it again, until it is another
/// (`hpet_counting` of arch/x86/kernel/hpet.c). At that second reading, and for as long as it likes, there is the host's TSC in one of its
/// registers, which the log knows nothing of: a forced stop ships it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Probe {
    #[default]
    None,
    /// The last exit started the counter.
    Started,
    /// The last exit was the first reading behind that.
    Read,
    /// The last exit was the second.
    ReadTwice,
}

/// What the page of the registers holds, as offsets in it and values; the rest is zero.
pub type Shown = [(usize, u64); 3];

impl Hpet {
    /// The timer at power-on: it does not count.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The volatile state.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The main counter at `now`.
    #[must_use]
    pub const fn counter(&self, now: VirtualTime) -> u64 {
        let State { counts, base, since, .. } = self.state;
        if counts { base.wrapping_add(now.since(since) / PERIOD) } else { base }
    }

    /// Whether the guest reads the counter without an exit: it stands still until the next one, at which time should
    /// therefore be fresh.
    #[must_use]
    pub const fn stands_still(&self) -> bool {
        self.state.reads.is_on()
    }

    /// What the page of the registers holds at `now`; `None`: there is no page, and each access is an exit.
    #[must_use]
    pub const fn shown(&self, now: VirtualTime) -> Option<Shown> {
        if !self.stands_still() {
            return None;
        }
        Some([
            (offset::CAPABILITIES as usize, CAPABILITIES),
            (offset::CONFIGURATION as usize, self.configuration()),
            (offset::COUNTER as usize, self.counter(now)),
        ])
    }

    const fn configuration(&self) -> u64 {
        if self.state.counts { ENABLE } else { 0 }
    }

    fn register(&self, now: VirtualTime, offset: u64) -> u64 {
        match offset {
            offset::CAPABILITIES => CAPABILITIES,
            offset::CONFIGURATION => self.configuration(),
            offset::COUNTER => self.counter(now),
            _ => 0,
        }
    }

    /// The guest reads at `offset`, by an exit.
    pub fn read(&mut self, now: VirtualTime, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..LEN) {
            *byte = self.register(now, at & !7).to_le_bytes()[(at & 7) as usize];
        }
        if self.state.probe == Probe::Read {
            // The next reading is to be another, even if time was not read anew for it.
            self.state.base = self.state.base.wrapping_add(1);
        }
    }

    /// The guest writes at `offset`. The specification has accesses of 32 and 64 bits only, aligned; others change nothing.
    pub fn write(&mut self, now: VirtualTime, offset: u64, data: &[u8]) {
        let at = (offset & 7) as usize;
        if !matches!(data.len(), 4 | 8) || !at.is_multiple_of(data.len()) {
            return;
        }
        let mut bytes = self.register(now, offset & !7).to_le_bytes();
        bytes[at..at + data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let (counter, counts) = match offset & !7 {
            offset::CONFIGURATION => (self.counter(now), value & ENABLE != 0),
            offset::COUNTER => (value, self.state.counts),
            _ => return,
        };
        if counts && !self.state.counts {
            self.state.probe = Probe::Started;
        }
        (self.state.base, self.state.since, self.state.counts) = (counter, now, counts);
    }

    /// An exit of the guest, at `now`. `reads`: it reads the counter.
    pub fn exit(&mut self, now: VirtualTime, reads: bool) {
        self.state.probe = match self.state.probe {
            Probe::Started if reads => Probe::Read,
            Probe::Read if reads => Probe::ReadTwice,
            _ => Probe::None,
        };
        if reads {
            self.state.reads.sparable_exit(now);
        } else {
            self.state.reads.exit(now, is_worth_a_page);
        }
    }

    /// Whether the host's TSC may be in the guest's registers, `reads` telling whether its present exit, which is not
    /// emulated yet, reads the counter.
    #[must_use]
    pub fn exposes_tsc(&self, reads: bool) -> bool {
        self.state.probe == Probe::Read && reads
    }

    /// Whether the last exit was of that kind: the guest must not go on without a forced stop where there is a log.
    #[must_use]
    pub fn has_exposed_tsc(&self) -> bool {
        self.state.probe == Probe::ReadTwice
    }

    /// The guest's wait for an interrupt ends at `now`.
    pub fn wakes(&mut self, now: VirtualTime) {
        self.state.reads.wakes(now);
    }

    /// The guest was stopped where it has no exit.
    pub fn forced_stop(&mut self, now: VirtualTime) {
        self.state.probe = Probe::None;
        self.state.reads.forced_stop(now);
    }
}

fn is_worth_a_page(window: Window) -> bool {
    if window.spared {
        window.gap <= SPARSE
    } else {
        window.gap <= DENSE && window.could_be_spared >= READINGS
    }
}

#[cfg(test)]
mod tests;
