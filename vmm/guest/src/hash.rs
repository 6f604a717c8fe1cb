//! The fixed hash of every map: XXH3 with a constant seed, so that two runs lay out the same tables.

use core::hash::{BuildHasher, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Builds [`FixedHasher`]s. All of them are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedState;

impl BuildHasher for FixedState {
    type Hasher = FixedHasher;

    #[inline]
    fn build_hasher(&self) -> FixedHasher {
        FixedHasher(0x7461_6e64_656d)
    }
}

/// Folds each write into its state by XXH3, which takes the state as seed.
#[derive(Clone, Debug)]
pub struct FixedHasher(u64);

impl Hasher for FixedHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    #[inline]
    fn write_usize(&mut self, value: usize) {
        // The length that goes before a slice: XXH3 counts the length itself.
        self.0 = self.0.wrapping_add(value as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;

    #[test]
    fn a_key_hashes_the_same_in_every_build() {
        let key: Box<[u8]> = Box::from(&b"key:000000000001"[..]);
        assert_eq!(FixedState.hash_one(&key), FixedState.hash_one(&b"key:000000000001"[..]));
        assert_eq!(FixedState.hash_one(&key), 0xc595_c173_1d06_8023);
    }
}
