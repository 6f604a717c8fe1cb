// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! How long the host spends on each kind of exit, from leaving the guest to entering it again.

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

/// Counts an exit for `reason` that took `cycles` until the guest was entered again. The kinds of one vCPU are
/// in the order of their first appearance.
pub fn note(kinds: &mut [Kind], reason: u32, cycles: u64) {
    let known = kinds.iter().position(|kind| kind.count == 0 || kind.reason == reason);
    let place = known.unwrap_or(kinds.len().saturating_sub(1));
    if let Some(kind) = kinds.get_mut(place) {
        if kind.count == 0 {
            kind.reason = reason;
        }
        kind.count += 1;
        kind.cycles = kind.cycles.wrapping_add(cycles);
        if let Some(count) = kind.buckets.get_mut(bucket(cycles)) {
            *count += 1;
        }
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
        let mut kinds = [Kind::default(); KINDS];
        for reason in 0..40 {
            note(&mut kinds, reason, 1000);
            note(&mut kinds, reason, 3000);
        }
        assert_eq!(kinds[3].reason, 3);
        assert_eq!((kinds[3].count, kinds[3].cycles), (2, 4000));
        assert_eq!((kinds[3].buckets[9], kinds[3].buckets[11]), (1, 1));
        assert_eq!(kinds[KINDS - 1].count, 2 + 2 * 8);
    }
}
