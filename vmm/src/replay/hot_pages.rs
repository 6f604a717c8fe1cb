//! Pages that the guest writes again and again: they are not protected, and cost it no faults.
//!
//! The dirty log is looked at again and again, at forced stops and at some exits. A page found written at two of three
//! looks in a row is hot: it is left writable, so it stays in the log and is shipped with each forced stop. That is a
//! superset, and so right; a page that has not changed costs a forced stop far less than a fault costs the guest. A
//! hot page is protected every `HotPages::TRIAL` looks, and is hot again only if it is found written at the next.

/// Decides which pages are protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotPages {
    /// Pages that are writable, a bit each.
    hot: Vec<u64>,
    /// Pages that were found written at the last look, and at the one before.
    before: Vec<[u64; 2]>,
    looks: usize,
}

impl HotPages {
    /// The most hot pages: what a forced stop compares at most for nothing.
    pub const LIMIT: u32 = 1024;
    /// Looks after which a hot page is protected again.
    pub const TRIAL: usize = 16;

    /// Looks at the pages in the log, a bit each, and leaves those that are to be protected. Always for the same
    /// memory.
    pub fn look(&mut self, written: &mut [u64]) {
        self.hot.resize(written.len(), 0);
        self.before.resize(written.len(), [0; 2]);
        self.looks += 1;
        let mut room = Self::LIMIT;
        for (i, ((written, hot), before)) in
            written.iter_mut().zip(&mut self.hot).zip(&mut self.before).enumerate()
        {
            let on_trial = (i + self.looks).is_multiple_of(Self::TRIAL);
            let again = before[0] | before[1];
            let mut keep = if on_trial { again & !*hot } else { again | *hot } & *written;
            while keep.count_ones() > room {
                keep &= keep - 1;
            }
            room -= keep.count_ones();
            *before = [*written, before[0]];
            *hot = keep;
            *written &= !keep;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Memory as KVM sees it: a page that is protected enters the log by a fault.
    struct Memory {
        log: Vec<u64>,
        faults: u32,
    }

    impl Memory {
        fn new(words: usize) -> Self {
            Self { log: vec![0; words], faults: 0 }
        }

        fn write(&mut self, page: usize) {
            let bit = 1 << (page % 64);
            self.faults += u32::from(self.log[page / 64] & bit == 0);
            self.log[page / 64] |= bit;
        }

        fn look(&mut self, pages: &mut HotPages) {
            let mut protect = self.log.clone();
            pages.look(&mut protect);
            for (log, protect) in self.log.iter_mut().zip(&protect) {
                assert_eq!(*log & protect, *protect, "only what is in the log can be protected");
                *log &= !protect;
            }
        }

        fn logged(&self) -> u32 {
            self.log.iter().map(|word| word.count_ones()).sum()
        }
    }

    #[test]
    fn a_page_that_is_written_all_the_time_costs_a_fault_every_so_many_looks() {
        let (mut memory, mut pages) = (Memory::new(4), HotPages::default());
        let looks = 10 * HotPages::TRIAL;
        for _ in 0..looks {
            memory.write(77);
            memory.look(&mut pages);
        }
        assert!((10..=13).contains(&memory.faults), "{}", memory.faults);
    }

    #[test]
    fn a_page_written_rarely_is_protected_at_once_and_one_that_was_hot_in_the_end() {
        let (mut memory, mut pages) = (Memory::new(40), HotPages::default());
        for _ in 0..10 {
            memory.write(3);
            memory.look(&mut pages);
            assert_eq!(memory.logged(), 0);
            memory.look(&mut pages);
            memory.look(&mut pages);
        }
        for page in 0..2000 {
            memory.write(page);
        }
        memory.look(&mut pages);
        for page in 0..2000 {
            memory.write(page);
        }
        memory.look(&mut pages);
        assert_eq!(memory.logged(), HotPages::LIMIT);
        // Its trial may come last, and is remembered for two looks more.
        for _ in 0..HotPages::TRIAL + 2 {
            memory.look(&mut pages);
        }
        assert_eq!(memory.logged(), 0);
        memory.write(3);
        memory.look(&mut pages);
        assert_eq!(memory.logged(), 0, "and cold");
    }

    proptest! {
        /// Whatever is written: only what is in the log is protected, and what is not stays within the limit.
        #[test]
        fn only_written_pages_are_protected_and_the_hot_ones_have_a_limit(rounds in prop::collection::vec(
            prop::collection::vec(0usize..4096, 0..1500), 1..40)) {
            let (mut memory, mut pages) = (Memory::new(64), HotPages::default());
            for round in rounds {
                round.into_iter().for_each(|page| memory.write(page));
                memory.look(&mut pages);
                prop_assert!(memory.logged() <= HotPages::LIMIT);
            }
        }
    }
}
