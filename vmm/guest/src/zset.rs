//! A sorted set: members ordered by score, then by bytes. Made for small sets: a change moves the
//! entries behind it.

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::store::{Bytes, Map, OutOfMemory, bytes};

/// Members with a score each. Scores are never NaN.
#[derive(Debug, Default)]
pub struct SortedSet {
    scores: Map<f64>,
    order: Vec<(f64, Bytes)>,
}

fn compare(left: (f64, &[u8]), right: (f64, &[u8])) -> Ordering {
    // Zero and minus zero are one score; no score is NaN.
    left.0.partial_cmp(&right.0).unwrap_or(Ordering::Equal).then_with(|| left.1.cmp(right.1))
}

impl SortedSet {
    /// How many members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// A member's score.
    #[must_use]
    pub fn score(&self, member: &[u8]) -> Option<f64> {
        self.scores.get(member).copied()
    }

    /// A member's place, counted from zero, lowest score first.
    #[must_use]
    pub fn rank(&self, member: &[u8]) -> Option<usize> {
        self.place(self.score(member)?, member).ok()
    }

    /// The members in order.
    #[must_use]
    pub fn members(&self) -> &[(f64, Bytes)] {
        &self.order
    }

    /// Adds a member or changes its score.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing has changed.
    pub fn insert(&mut self, member: &[u8], score: f64) -> Result<(), OutOfMemory> {
        if let Some(old) = self.scores.get_mut(member) {
            let old = core::mem::replace(old, score);
            if let Ok(from) = self.place(old, member) {
                let (_, key) = self.order.remove(from);
                let to = self.place(score, member).unwrap_or_else(|place| place);
                // No allocation: one was removed just now.
                self.order.insert(to, (score, key));
            }
            return Ok(());
        }
        let (key, ordered) = (bytes(member)?, bytes(member)?);
        self.order.try_reserve(1)?;
        self.scores.try_reserve(1)?;
        let place = self.place(score, member).unwrap_or_else(|place| place);
        self.order.insert(place, (score, ordered));
        self.scores.insert(key, score);
        Ok(())
    }

    /// Removes a member; its score.
    pub fn remove(&mut self, member: &[u8]) -> Option<f64> {
        let score = self.scores.swap_remove(member)?;
        if let Ok(place) = self.place(score, member) {
            self.order.remove(place);
        }
        Some(score)
    }

    /// Removes the member with the lowest score, or the highest.
    pub fn pop(&mut self, highest: bool) -> Option<(f64, Bytes)> {
        let (score, member) = match (highest, self.order.is_empty()) {
            (_, true) => return None,
            (true, false) => self.order.pop()?,
            (false, false) => self.order.remove(0),
        };
        self.scores.swap_remove(&member);
        Some((score, member))
    }

    fn place(&self, score: f64, member: &[u8]) -> Result<usize, usize> {
        self.order.binary_search_by(|(other, key)| compare((*other, key), (score, member)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_as_a_map_sorted_by_score(steps in proptest::collection::vec((0u8..12, -3i32..4, 0u8..4), 0..80)) {
            let mut set = SortedSet::default();
            let mut model: BTreeMap<u8, i32> = BTreeMap::new();
            for (member, score, action) in steps {
                match action {
                    0 => prop_assert_eq!(set.remove(&[member]), model.remove(&member).map(f64::from)),
                    1 => {
                        let lowest = model.iter().min_by_key(|(member, score)| (**score, **member)).map(|(m, s)| (*m, *s));
                        let popped = set.pop(false).map(|(score, member)| (member[0], score as i32));
                        prop_assert_eq!(popped, lowest);
                        lowest.map(|(member, _)| model.remove(&member));
                    }
                    _ => {
                        set.insert(&[member], f64::from(score)).unwrap();
                        model.insert(member, score);
                    }
                }
                let mut sorted: Vec<(i32, u8)> = model.iter().map(|(member, score)| (*score, *member)).collect();
                sorted.sort_unstable();
                let members: Vec<(i32, u8)> = set.members().iter().map(|(score, member)| (*score as i32, member[0])).collect();
                prop_assert_eq!(&members, &sorted);
                for (rank, (score, member)) in sorted.iter().enumerate() {
                    prop_assert_eq!(set.rank(&[*member]), Some(rank));
                    prop_assert_eq!(set.score(&[*member]), Some(f64::from(*score)));
                }
            }
        }
    }
}
