// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! How long the host spends on each kind of exit, from leaving the guest to entering it again.
//!
//! One writer, the vCPU that leaves and enters; anybody reads at any time, and may find an exit counted in one place and
//! not yet in another.

use core::fmt;

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Buckets: the n-th counts durations from 2^n up to 2^(n+1) cycles; the last one all that is longer.
pub const BUCKETS: usize = 32;

/// Kinds of exit that are told apart; more are counted together in the last.
pub const KINDS: usize = 32;

/// Exits of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Kind {
    /// The hardware's number for the exit (SVM exit code, VMX basic reason), before the module changed it.
    pub reason: u32,
    /// Always zero.
    pub reserved: u32,
    /// Exits. Zero: this kind is not in use.
    pub count: u64,
    /// Host TSC cycles in all.
    pub cycles: u64,
    /// Counts by duration.
    pub buckets: [u64; BUCKETS],
}

/// Which bucket a duration in cycles belongs to.
#[must_use]
pub const fn bucket(cycles: u64) -> usize {
    let log = if cycles == 0 { 0 } else { cycles.ilog2() as usize };
    if log < BUCKETS { log } else { BUCKETS - 1 }
}

/// Exits of one kind, as they are counted.
#[derive(Debug)]
pub struct Live {
    reason: AtomicU32,
    count: AtomicU64,
    cycles: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Live {
    fn default() -> Self {
        Self {
            reason: AtomicU32::new(0),
            count: AtomicU64::new(0),
            cycles: AtomicU64::new(0),
            buckets: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Adds without a bus lock: there is one writer.
fn add(to: &AtomicU64, what: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(what), Ordering::Relaxed);
}

impl Live {
    /// What was counted so far.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let get = |from: &AtomicU64| from.load(Ordering::Relaxed);
        Kind {
            count: self.count.load(Ordering::Acquire),
            reason: self.reason.load(Ordering::Relaxed),
            reserved: 0,
            cycles: get(&self.cycles),
            buckets: core::array::from_fn(|n| self.buckets.get(n).map_or(0, get)),
        }
    }

    /// Begins from zero. By the writer, or while there is none.
    pub fn clear(&self) {
        for number in self.buckets.iter().chain([&self.count, &self.cycles]) {
            number.store(0, Ordering::Relaxed);
        }
    }
}

/// Counts an exit for `reason` that took `cycles` until the guest was entered again. The kinds of one vCPU are
/// in the order of their first appearance. One writer at a time.
pub fn note(kinds: &[Live], reason: u32, cycles: u64) {
    let known = kinds.iter().position(|kind| {
        kind.count.load(Ordering::Relaxed) == 0 || kind.reason.load(Ordering::Relaxed) == reason
    });
    let place = known.unwrap_or(kinds.len().saturating_sub(1));
    if let Some(kind) = kinds.get(place) {
        let count = kind.count.load(Ordering::Relaxed);
        if count == 0 {
            kind.reason.store(reason, Ordering::Relaxed);
        }
        add(&kind.cycles, cycles);
        if let Some(count) = kind.buckets.get(bucket(cycles)) {
            add(count, 1);
        }
        // A reader that finds it in use finds its reason.
        kind.count.store(count.wrapping_add(1), Ordering::Release);
    }
}

/// One line: the reason, exits, cycles in all, then exits by duration as `2^n:count`, those that there are.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x} {} {}", self.reason, self.count, self.cycles)?;
        for (n, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            write!(f, " 2^{n}:{count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024].map(bucket), [0, 0, 1, 1, 2, 9, 10]);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn kinds_are_told_apart_until_there_is_no_room() {
        let live: [Live; KINDS] = core::array::from_fn(|_| Live::default());
        for reason in 0..40 {
            note(&live, reason, 1000);
            note(&live, reason, 3000);
        }
        let kinds = live.each_ref().map(Live::kind);
        assert_eq!(kinds[3].reason, 3);
        assert_eq!((kinds[3].count, kinds[3].cycles), (2, 4000));
        assert_eq!((kinds[3].buckets[9], kinds[3].buckets[11]), (1, 1));
        assert_eq!(kinds[KINDS - 1].count, 2 + 2 * 8);
        assert_eq!(kinds[3].to_string(), "0x0003 2 4000 2^9:1 2^11:1");
        live[3].clear();
        assert_eq!(live[3].kind().count, 0);
        assert_eq!(live[3].kind().buckets, [0; BUCKETS]);
    }
}
