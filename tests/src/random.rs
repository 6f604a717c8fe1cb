//! Random numbers that a seed repeats.

use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood, 2014): a seed is a sequence.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, any of 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of the range. Its bias is below 2^-32 for ranges below 2^32.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let span = range.end().wrapping_sub(*range.start()).wrapping_add(1);
        let drawn = self.next();
        range.start() + if span == 0 { drawn } else { drawn % span }
    }

    /// A length of time, so many microseconds.
    pub fn micros(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_micros(self.within(range))
    }

    /// One of the choices; `None` when there are none.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let last = choices.len().checked_sub(1)?;
        choices.get(self.within(0..=last as u64) as usize)
    }
}

/// A seed that nobody chose: the time.
#[must_use]
pub fn fresh_seed() -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    // 48 bits are easier to type again than 64.
    Random::new(nanos).next() & 0xffff_ffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_ranges_hold() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        for _ in 0..1000 {
            let drawn = a.within(30..=2000);
            assert_eq!(drawn, b.within(30..=2000));
            assert!((30..=2000).contains(&drawn));
        }
        assert_ne!(Random::new(1).next(), Random::new(2).next());
        assert_eq!(a.within(5..=5), 5);
        a.within(0..=u64::MAX);
        assert_eq!(a.one_of::<u8>(&[]), None);
    }
}
