//! A sorted set: members ordered by score, then by bytes.

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::store::{Bytes, Map, OutOfMemory, bytes};

/// Most members in one run: what an insertion moves at most.
const RUN: usize = 128;

type Entry = (f64, Bytes);

/// Members with a score each. Scores are never NaN.
#[derive(Debug, Default)]
pub struct SortedSet {
    scores: Map<f64>,
    /// All members in order, cut into runs of 1 to [`RUN`].
    runs: Vec<Vec<Entry>>,
}

fn compare(left: &Entry, score: f64, member: &[u8]) -> Ordering {
    // Zero and minus zero are one score; no score is NaN.
    left.0.partial_cmp(&score).unwrap_or(Ordering::Equal).then_with(|| (*left.1).cmp(member))
}

impl SortedSet {
    /// How many members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scores.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }

    /// A member's score.
    #[must_use]
    pub fn score(&self, member: &[u8]) -> Option<f64> {
        self.scores.get(member).copied()
    }

    /// A member's place, counted from zero, lowest score first.
    #[must_use]
    pub fn rank(&self, member: &[u8]) -> Option<usize> {
        let (run, place) = self.find(self.score(member)?, member);
        let before: usize = self.runs[..run].iter().map(Vec::len).sum();
        Some(before + place.ok()?)
    }

    /// The members in order.
    pub fn members(&self) -> impl Iterator<Item = &(f64, Bytes)> {
        self.runs.iter().flatten()
    }

    /// Adds a member or changes its score.
    ///
    /// # Errors
    /// [`OutOfMemory`]: nothing has changed.
    pub fn insert(&mut self, member: &[u8], score: f64) -> Result<(), OutOfMemory> {
        let old = self.score(member);
        if old == Some(score) {
            return Ok(());
        }
        let entry = (score, bytes(member)?);
        match old {
            None => {
                let key = bytes(member)?;
                self.scores.try_reserve(1)?;
                self.place(entry)?;
                self.scores.insert(key, score);
            }
            Some(old) => {
                self.place(entry)?;
                self.take(old, member);
                if let Some(kept) = self.scores.get_mut(member) {
                    *kept = score;
                }
            }
        }
        Ok(())
    }

    /// Removes a member; its score.
    pub fn remove(&mut self, member: &[u8]) -> Option<f64> {
        let score = self.scores.swap_remove(member)?;
        self.take(score, member);
        Some(score)
    }

    /// Removes the member with the lowest score, or the highest.
    pub fn pop(&mut self, highest: bool) -> Option<(f64, Bytes)> {
        let run = if highest { self.runs.len().checked_sub(1)? } else { 0 };
        let entries = self.runs.get_mut(run)?;
        let entry = if highest { entries.pop()? } else { entries.remove(0) };
        self.drop_if_empty(run);
        self.scores.swap_remove(&entry.1);
        Some(entry)
    }

    /// The run that an entry is in or belongs in, and its place there, taken or free. The run is zero if
    /// there are none.
    fn find(&self, score: f64, member: &[u8]) -> (usize, Result<usize, usize>) {
        let starts_before = |run: &Vec<Entry>| {
            run.first().is_some_and(|first| compare(first, score, member) != Ordering::Greater)
        };
        let run = self.runs.partition_point(starts_before).saturating_sub(1);
        let place = self
            .runs
            .get(run)
            .map_or(Err(0), |entries| entries.binary_search_by(|entry| compare(entry, score, member)));
        (run, place)
    }

    /// Puts an entry in its place.
    fn place(&mut self, entry: Entry) -> Result<(), OutOfMemory> {
        let (mut run, place) = self.find(entry.0, &entry.1);
        let mut place = place.unwrap_or_else(|place| place);
        if self.runs.get(run).is_none_or(|entries| entries.len() == RUN) {
            self.runs.try_reserve(1)?;
            let mut upper = Vec::new();
            upper.try_reserve(RUN / 2 + 1)?;
            if let Some(full) = self.runs.get_mut(run) {
                upper.extend(full.drain(RUN / 2..));
                self.runs.insert(run + 1, upper);
                if place > RUN / 2 {
                    run += 1;
                    place -= RUN / 2;
                }
            } else {
                self.runs.push(upper);
            }
        }
        let entries = &mut self.runs[run];
        if entries.try_reserve(1).is_err() {
            self.drop_if_empty(run);
            return Err(OutOfMemory);
        }
        entries.insert(place, entry);
        Ok(())
    }

    /// Takes an entry out that is there.
    fn take(&mut self, score: f64, member: &[u8]) {
        if let (run, Ok(place)) = self.find(score, member) {
            self.runs[run].remove(place);
            self.drop_if_empty(run);
        }
    }

    fn drop_if_empty(&mut self, run: usize) {
        if self.runs[run].is_empty() {
            self.runs.remove(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn behaves_as_a_map_sorted_by_score(steps in proptest::collection::vec((any::<u8>(), -30i32..40, 0u8..9), 0..900)) {
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
                prop_assert!(set.runs.iter().all(|run| (1..=RUN).contains(&run.len())));
            }
            let mut sorted: Vec<(i32, u8)> = model.iter().map(|(member, score)| (*score, *member)).collect();
            sorted.sort_unstable();
            let members: Vec<(i32, u8)> = set.members().map(|(score, member)| (*score as i32, member[0])).collect();
            prop_assert_eq!(&members, &sorted);
            for (rank, (score, member)) in sorted.iter().enumerate() {
                prop_assert_eq!(set.rank(&[*member]), Some(rank));
                prop_assert_eq!(set.score(&[*member]), Some(f64::from(*score)));
            }
        }
    }
}
