// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! Which vCPUs are registered: looked up at every entry and exit of every vCPU on the host.
//!
//! A fixed hash table without locks for readers. Writers are serialised by their caller, and wait after a
//! removal until no reader can be in the middle of a lookup (RCU, in the module).

use super::sync::{AtomicUsize, Ordering};

/// Places. More vCPUs than this are refused.
pub const PLACES: usize = 256;

/// A key lies within so many places of where its hash says: one or two cache lines.
const REACH: usize = 16;

/// Keys (addresses of vCPUs) and values (addresses of registrations); zero is neither.
#[derive(Debug)]
pub struct Table {
    keys: [AtomicUsize; PLACES],
    values: [AtomicUsize; PLACES],
}

/// Why a key cannot be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// It is there already.
    Present,
    /// No place is left for it.
    Full,
}

const fn hash(key: usize) -> usize {
    // Addresses of vCPUs are multiples of 64 and more: the upper bits of the product depend on all of them.
    ((key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

fn places(key: usize) -> impl Iterator<Item = usize> {
    (0..REACH).map(move |step| (hash(key) + step) % PLACES)
}

impl Table {
    /// An empty table.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            keys: [const { AtomicUsize::new(0) }; PLACES],
            values: [const { AtomicUsize::new(0) }; PLACES],
        }
    }

    /// The value of a key. Safe at any time, beside a writer.
    #[must_use]
    pub fn get(&self, key: usize) -> Option<usize> {
        for place in places(key) {
            // Acquire: the value was there before the key.
            if self.keys.get(place)?.load(Ordering::Acquire) == key {
                return Some(self.values.get(place)?.load(Ordering::Relaxed)).filter(|value| *value != 0);
            }
        }
        None
    }

    /// Puts a key in. One writer at a time; neither number is zero.
    ///
    /// # Errors
    /// When it is there, or there is no room.
    pub fn insert(&self, key: usize, value: usize) -> Result<(), TableError> {
        if self.get(key).is_some() {
            return Err(TableError::Present);
        }
        for place in places(key) {
            let (Some(k), Some(v)) = (self.keys.get(place), self.values.get(place)) else { continue };
            if k.load(Ordering::Relaxed) == 0 {
                v.store(value, Ordering::Relaxed);
                k.store(key, Ordering::Release);
                return Ok(());
            }
        }
        Err(TableError::Full)
    }

    /// Takes a key out. One writer at a time. A reader that began before may still get the value: wait for
    /// it before the value is freed and before the place is used again.
    pub fn remove(&self, key: usize) {
        for place in places(key) {
            let found = self.keys.get(place).filter(|k| k.load(Ordering::Relaxed) == key);
            if let Some(k) = found {
                k.store(0, Ordering::Release);
            }
        }
    }
}

#[cfg(not(loom))]
impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn neighbouring_vcpus_fit_and_a_full_table_says_so() {
        let table = Table::new();
        let fitted = (1..=400usize).take_while(|n| table.insert(n * 0x2340, *n) == Ok(())).count();
        assert!(fitted >= 128, "only {fitted} vCPUs fit");
        assert!(fitted <= PLACES);
        assert_eq!(table.insert(0x2340, 9), Err(TableError::Present));
        assert_eq!(table.insert((fitted + 1) * 0x2340, 9), Err(TableError::Full));
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(steps in proptest::collection::vec((any::<bool>(), 1usize..40), 0..200)) {
            let (table, mut model) = (Table::new(), HashMap::new());
            for (put, key) in steps {
                let key = key << 6;
                if put {
                    let new = table.insert(key, key + 1);
                    prop_assert_eq!(new.is_ok(), model.insert(key, key + 1).is_none());
                } else {
                    table.remove(key);
                    model.remove(&key);
                }
                for key in (1..40).map(|k| k << 6) {
                    prop_assert_eq!(table.get(key), model.get(&key).copied());
                }
            }
        }
    }
}
