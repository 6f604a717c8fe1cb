//! Sums of guest memory, fine enough to name the place of a difference.
//!
//! A page that is not all zeros takes 72 bytes: a 64-bit sum, which decides, and one byte for each of
//! its 64 lines of 64 bytes, which names the place.

use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Bytes in a line.
pub const LINE: usize = 64;

/// Sum of one page that is not all zeros.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct PageSum {
    /// Guest page number.
    pub page: u64,
    /// xxh3 of the page.
    pub sum: u64,
    /// Low byte of the xxh3 of each line.
    pub lines: [u8; PAGE / LINE],
}

impl PageSum {
    /// Sums a page; `None` if it is all zeros.
    #[must_use]
    pub fn of(page: u64, bytes: &[u8]) -> Option<Self> {
        // A byte at a time, this costs three times as much as both sums.
        if bytes == [0; PAGE] {
            return None;
        }
        let mut lines = [0; PAGE / LINE];
        for (sum, line) in lines.iter_mut().zip(bytes.chunks(LINE)) {
            *sum = xxh3_64(line) as u8;
        }
        Some(Self { page, sum: xxh3_64(bytes), lines })
    }
}

/// The first place where two memories differ: page, and offset of the line.
///
/// Both lists are in page order, without the pages that are all zeros.
#[must_use]
pub fn first_difference(a: &[PageSum], b: &[PageSum]) -> Option<(u64, usize)> {
    let zero = xxh3_64(&[0; LINE]) as u8;
    let against_zeros = |sum: &PageSum| {
        let line = sum.lines.iter().position(|l| *l != zero).unwrap_or(0);
        (sum.page, line * LINE)
    };
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (None, None) => return None,
            (Some(x), Some(y)) if x.page == y.page => {
                if x.sum != y.sum {
                    let line = x.lines.iter().zip(&y.lines).position(|(l, m)| l != m).unwrap_or(0);
                    return Some((x.page, line * LINE));
                }
                a.next();
                b.next();
            }
            (Some(x), y) if y.is_none_or(|y| x.page < y.page) => return Some(against_zeros(x)),
            (_, Some(y)) => return Some(against_zeros(y)),
            (Some(_), None) => unreachable!("taken by the guard above"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(pages: &[(u64, usize, u8)]) -> Vec<PageSum> {
        pages
            .iter()
            .filter_map(|&(page, at, value)| {
                let mut bytes = [0; PAGE];
                bytes[at] = value;
                PageSum::of(page, &bytes)
            })
            .collect()
    }

    #[test]
    fn equal_memories_have_no_difference_and_zero_pages_do_not_count() {
        assert_eq!(first_difference(&memory(&[(3, 7, 1)]), &memory(&[(1, 0, 0), (3, 7, 1)])), None);
        assert_eq!(first_difference(&[], &[]), None);
    }

    #[test]
    fn the_first_differing_line_is_named() {
        let place = |a, b| first_difference(&memory(a), &memory(b));
        assert_eq!(place(&[(3, 130, 1)], &[(3, 130, 2)]), Some((3, 128)));
        assert_eq!(place(&[(3, 700, 1)], &[]), Some((3, 640)));
        assert_eq!(place(&[(9, 0, 1)], &[(5, 65, 1), (9, 0, 1)]), Some((5, 64)));
        assert_eq!(place(&[(1, 0, 1), (2, 64, 1)], &[(1, 0, 1), (4, 0, 1)]), Some((2, 64)));
    }
}
