//! Keys and values, with expiry in virtual time.
//!
//! Nothing in here panics for lack of memory: every growth is tried first and may fail with
//! [`OutOfMemory`], which leaves the store as it was.

use alloc::boxed::Box;
use alloc::collections::{TryReserveError, VecDeque};
use alloc::vec::Vec;

use indexmap::{IndexMap, IndexSet};

use crate::hash::FixedState;
use crate::zset::SortedSet;

/// A string that does not grow: a key, a member, a field.
pub type Bytes = Box<[u8]>;

/// A map in order of insertion, but for removals, which move the last entry into the gap.
pub type Map<V> = IndexMap<Bytes, V, FixedState>;

/// A set, ordered as [`Map`].
pub type Set = IndexSet<Bytes, FixedState>;

/// Memory does not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl From<TryReserveError> for OutOfMemory {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}

impl From<indexmap::TryReserveError> for OutOfMemory {
    fn from(_: indexmap::TryReserveError) -> Self {
        Self
    }
}

/// Copies a string into a growable buffer.
///
/// # Errors
/// [`OutOfMemory`].
pub fn buffer(text: &[u8]) -> Result<Vec<u8>, OutOfMemory> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(text.len())?;
    copy.extend_from_slice(text);
    Ok(copy)
}

/// Copies a string.
///
/// # Errors
/// [`OutOfMemory`].
pub fn bytes(text: &[u8]) -> Result<Bytes, OutOfMemory> {
    // Capacity equals length, so this does not reallocate.
    buffer(text).map(Vec::into_boxed_slice)
}

/// What a key holds.
#[derive(Debug)]
pub enum Value {
    /// A string.
    Str(Vec<u8>),
    /// A list, head first.
    List(VecDeque<Bytes>),
    /// A set.
    Set(Set),
    /// A map from field to string.
    Hash(Map<Bytes>),
    /// A set ordered by score.
    Sorted(SortedSet),
}

impl Value {
    /// The type's name, as TYPE tells it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Str(_) => "string",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Hash(_) => "hash",
            Self::Sorted(_) => "zset",
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Str(_) => false,
            Self::List(list) => list.is_empty(),
            Self::Set(set) => set.is_empty(),
            Self::Hash(hash) => hash.is_empty(),
            Self::Sorted(sorted) => sorted.is_empty(),
        }
    }
}

/// A value and when it ends.
#[derive(Debug)]
pub struct Entry {
    /// What the key holds.
    pub value: Value,
    /// Milliseconds of virtual time from which on the key is gone.
    pub expires: Option<u64>,
}

/// The keys. A key whose time has come is gone for every method, whether or not it was removed yet.
#[derive(Debug)]
pub struct Store {
    entries: Map<Entry>,
    now: u64,
    volatile: usize,
    cursor: usize,
    expired: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store at time zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: IndexMap::with_hasher(FixedState), now: 0, volatile: 0, cursor: 0, expired: 0 }
    }

    /// Milliseconds of virtual time, as last set.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Sets the time. It never goes back: an earlier one is ignored.
    pub fn set_now(&mut self, milliseconds: u64) {
        self.now = self.now.max(milliseconds);
    }

    /// How many keys there are. Keys whose time has come count until they are removed, as in Redis.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many keys have an expiry.
    #[must_use]
    pub fn volatile(&self) -> usize {
        self.volatile
    }

    /// How many keys were removed because their time had come.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// Looks at up to `most` keys, going round, and removes those whose time has come.
    pub fn expire_some(&mut self, most: usize) {
        if self.volatile == 0 {
            return;
        }
        for _ in 0..most.min(self.entries.len()) {
            if self.cursor >= self.entries.len() {
                self.cursor = 0;
            }
            match self.entries.get_index(self.cursor) {
                Some((_, entry)) if self.is_over(entry) => {
                    self.entries.swap_remove_index(self.cursor);
                    self.volatile -= 1;
                    self.expired += 1;
                }
                Some(_) => self.cursor += 1,
                None => return,
            }
        }
    }

    fn is_over(&self, entry: &Entry) -> bool {
        entry.expires.is_some_and(|end| end <= self.now)
    }

    /// The entry of a key.
    pub fn get(&mut self, key: &[u8]) -> Option<&mut Entry> {
        let index = self.entries.get_index_of(key)?;
        if self.volatile > 0 && self.is_over(&self.entries[index]) {
            self.entries.swap_remove_index(index);
            self.volatile -= 1;
            self.expired += 1;
            return None;
        }
        self.entries.get_index_mut(index).map(|(_, entry)| entry)
    }

    /// Sets a key, new or not, to a value and an expiry.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing has changed.
    pub fn set(&mut self, key: &[u8], value: Value, expires: Option<u64>) -> Result<(), OutOfMemory> {
        self.volatile += usize::from(expires.is_some());
        if let Some(entry) = self.entries.get_mut(key) {
            self.volatile -= usize::from(entry.expires.is_some());
            *entry = Entry { value, expires };
            return Ok(());
        }
        let inserted = bytes(key).and_then(|key| {
            self.entries.try_reserve(1)?;
            self.entries.insert(key, Entry { value, expires });
            Ok(())
        });
        if inserted.is_err() {
            self.volatile -= usize::from(expires.is_some());
        }
        inserted
    }

    /// The value of a key, made by `default` if there is none.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing has changed.
    pub fn get_or_insert(&mut self, key: &[u8], default: fn() -> Value) -> Result<&mut Value, OutOfMemory> {
        if self.get(key).is_none() {
            self.set(key, default(), None)?;
        }
        self.entries.get_mut(key).map(|entry| &mut entry.value).ok_or(OutOfMemory)
    }

    /// Changes the expiry of a key that is there.
    pub fn set_expiry(&mut self, key: &[u8], expires: Option<u64>) {
        if let Some(entry) = self.entries.get_mut(key) {
            self.volatile -= usize::from(entry.expires.is_some());
            self.volatile += usize::from(expires.is_some());
            entry.expires = expires;
        }
    }

    /// Removes a key; what it held.
    pub fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        self.get(key)?;
        let entry = self.entries.swap_remove(key)?;
        self.volatile -= usize::from(entry.expires.is_some());
        Some(entry)
    }

    /// Removes a key that holds an empty list, set, hash or sorted set.
    pub fn remove_if_empty(&mut self, key: &[u8]) {
        if self.entries.get(key).is_some_and(|entry| entry.value.is_empty()) {
            self.remove(key);
        }
    }

    /// Removes all keys and gives their memory back.
    pub fn clear(&mut self) {
        *self = Self { now: self.now, expired: self.expired, ..Self::new() };
    }

    /// The keys whose time has not come, in the order of the map.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().filter(|(_, entry)| !self.is_over(entry)).map(|(key, entry)| (&**key, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn string(text: &[u8]) -> Value {
        Value::Str(text.to_vec())
    }

    #[test]
    fn a_key_is_gone_when_its_time_comes() {
        let mut store = Store::new();
        store.set(b"a", string(b"1"), Some(10)).unwrap();
        store.set(b"b", string(b"2"), None).unwrap();
        store.set_now(9);
        assert!(store.get(b"a").is_some());
        store.set_now(10);
        store.set_now(3);
        assert_eq!((store.now(), store.iter().count(), store.len()), (10, 1, 2));
        store.expire_some(10);
        assert_eq!((store.len(), store.volatile(), store.expired()), (1, 0, 1));
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_with_deadlines(steps in proptest::collection::vec((0u8..6, 0u8..6, 0u64..30), 0..120)) {
            let mut store = Store::new();
            let mut model: BTreeMap<u8, (u64, Option<u64>)> = BTreeMap::new();
            let mut now = 0;
            for (key, action, number) in steps {
                match action {
                    0 => { now += number; store.set_now(now); }
                    1 => { store.set(&[key], string(&number.to_le_bytes()), None).unwrap(); model.insert(key, (number, None)); }
                    2 => { store.set(&[key], string(&number.to_le_bytes()), Some(now + number)).unwrap(); model.insert(key, (number, Some(now + number))); }
                    3 => { let there = store.remove(&[key]).is_some(); model.retain(|_, (_, end)| end.is_none_or(|end| end > now)); prop_assert_eq!(there, model.remove(&key).is_some()); }
                    4 => { store.expire_some(2); }
                    _ => if store.get(&[key]).is_some() {
                        store.set_expiry(&[key], Some(now + number));
                        model.get_mut(&key).unwrap().1 = Some(now + number);
                    }
                }
                model.retain(|_, (_, end)| end.is_none_or(|end| end > now));
                prop_assert_eq!(store.volatile(), store.entries.values().filter(|entry| entry.expires.is_some()).count());
                let mut keys: Vec<u8> = store.iter().map(|(key, _)| key[0]).collect();
                keys.sort_unstable();
                prop_assert_eq!(keys, model.keys().copied().collect::<Vec<u8>>());
            }
        }
    }
}
