//! What was last shipped of the pages that forced stops ship again and again.
//!
//! Both sides remember it, in the same places, so that only the lines of a page that are different now have to
//! travel. It is the page as it was at a forced stop, on both sides byte for byte; what the page was in between does
//! not matter. Of a page that is not remembered, zeros are: most pages of a young guest are empty in good part.
//!
//! The primary must not leave a page out because it is as it was shipped: the backup, which is at the exit before
//! the stop, may have another (a lock that was free at the last stop, taken at that exit, and is free again). So
//! every page of a stop is named, and the receiver puts what is remembered in place.

use crate::machine::memory::{PAGE_SIZE, Page};

/// Bytes in a line, the unit of comparison. A page has 64 of them.
pub const LINE: usize = 64;

const _: () = assert!(LINE * u64::BITS as usize == PAGE_SIZE);

/// Pages remembered: 8 MiB. A page has one place, by its number.
const PLACES: usize = 2048;

/// The pages last shipped. Takes memory when it is first used.
#[derive(Clone, Default)]
pub struct Shipped {
    /// Numbers of the pages in their places, plus one; 0: none.
    numbers: Vec<u64>,
    /// Their contents.
    contents: Vec<u8>,
    /// Parts of forced stops so far.
    parts: u64,
}

impl std::fmt::Debug for Shipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shipped").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl Shipped {
    /// Parts of forced stops that went through here so far. Two sides that agree on it remember the same.
    #[must_use]
    pub const fn parts(&self) -> u64 {
        self.parts
    }

    /// A part is through.
    pub const fn next_part(&mut self) {
        self.parts += 1;
    }

    /// What is remembered of page `number`, in its place.
    fn place(&mut self, number: u64) -> &mut Page {
        if self.numbers.is_empty() {
            self.numbers = vec![0; PLACES];
            self.contents = vec![0; PLACES * PAGE_SIZE];
        }
        let place = (number % PLACES as u64) as usize;
        let page = &mut self.contents.as_chunks_mut::<PAGE_SIZE>().0[place];
        let occupant = &mut self.numbers[place];
        if *occupant != number + 1 {
            if *occupant != 0 {
                page.fill(0);
            }
            *occupant = number + 1;
        }
        page
    }

    /// Appends the lines of `page` that are not as remembered to `lines`, and remembers them. A bit each, the first
    /// line's the lowest.
    pub fn ship(&mut self, number: u64, page: &Page, lines: &mut Vec<u8>) -> u64 {
        let known = self.place(number);
        if is_x86_feature_detected!("avx2") {
            // SAFETY: this CPU has what the function is compiled for.
            return unsafe { ship_by_avx2(known, page, lines) };
        }
        ship_lines(known, page, lines)
    }

    /// The other side of [`Shipped::ship`]: the page, from the lines that changed. Takes them off the front of
    /// `lines`; `None` if there are too few.
    pub fn receive(&mut self, number: u64, changed: u64, lines: &mut &[[u8; LINE]]) -> Option<&Page> {
        let (new, rest) = lines.split_at_checked(changed.count_ones() as usize)?;
        *lines = rest;
        let page = self.place(number);
        let known = page.as_chunks_mut::<LINE>().0;
        let places = known.iter_mut().enumerate().filter(|(i, _)| changed >> i & 1 == 1);
        for ((_, known), line) in places.zip(new) {
            *known = *line;
        }
        Some(page)
    }
}

#[inline(always)]
fn ship_lines(known: &mut Page, page: &Page, lines: &mut Vec<u8>) -> u64 {
    let mut changed = 0;
    let known = known.as_chunks_mut::<LINE>().0;
    for (i, (line, known)) in page.as_chunks::<LINE>().0.iter().zip(known).enumerate() {
        if line != known {
            *known = *line;
            lines.extend_from_slice(line);
            changed |= 1 << i;
        }
    }
    changed
}

/// The same by fewer instructions: the guest stands still meanwhile.
#[target_feature(enable = "avx2")]
fn ship_by_avx2(known: &mut Page, page: &Page, lines: &mut Vec<u8>) -> u64 {
    ship_lines(known, page, lines)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_changed_travels() {
        let (mut here, mut there) = (Shipped::default(), Shipped::default());
        let mut page = [0; PAGE_SIZE];
        let mut lines = Vec::new();
        assert_eq!(here.ship(5, &page, &mut lines), 0, "an empty page");
        page[LINE] = 1;
        page[PAGE_SIZE - 1] = 2;
        assert_eq!(here.ship(5, &page, &mut lines), 1 << 1 | 1 << 63);
        assert_eq!(lines.len(), 2 * LINE);
        assert!(there.receive(5, 0, &mut [].as_slice()).is_some());
        let mut sent = lines.as_chunks::<LINE>().0;
        assert_eq!(there.receive(5, 1 << 1 | 1 << 63, &mut sent), Some(&page));
        assert!(sent.is_empty());
        lines.clear();
        assert_eq!(here.ship(5, &page, &mut lines), 0, "as it was shipped");
        assert_eq!(there.receive(5, 0, &mut [].as_slice()), Some(&page));
        assert!(there.receive(5, 1, &mut [].as_slice()).is_none(), "a line is missing");
    }

    proptest! {
        /// The receiver has every page as it was shipped, whichever pages share a place.
        #[test]
        fn the_receiver_has_what_was_shipped(pages in prop::collection::vec(
            (0u64..3, 0u64..3, prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..20)), 1..60)) {
            let (mut here, mut there) = (Shipped::default(), Shipped::default());
            let mut memory = std::collections::BTreeMap::new();
            for (low, high, writes) in pages {
                let number = low + high * PLACES as u64;
                let page = memory.entry(number).or_insert([0; PAGE_SIZE]);
                for (at, byte) in writes {
                    page[at] = byte;
                }
                let (mut known, mut plain) = (*here.place(number), Vec::new());
                let by_any_cpu = ship_lines(&mut known, page, &mut plain);
                let mut lines = Vec::new();
                let changed = here.ship(number, page, &mut lines);
                prop_assert_eq!((by_any_cpu, &plain), (changed, &lines));
                let mut sent = lines.as_chunks::<LINE>().0;
                prop_assert_eq!(there.receive(number, changed, &mut sent), Some(&*page));
                prop_assert!(sent.is_empty());
            }
        }
    }
}
