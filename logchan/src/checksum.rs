//! crc32c, in the way that is the quickest on this CPU.
//!
//! Three chains of the CRC instruction, or carry-less multiplication of wide vectors: which of them is quicker depends on
//! the CPU and on the length, by a third in either direction. So they race once, when a process sets up its first channel.

use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
use std::hint::black_box;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Below this length nothing is quicker than the CRC instruction word by word.
const SHORT: usize = 256;
/// From this length on the second race counts.
const LONG: usize = 8 << 10;
/// Lengths at which they race.
const RACES: [usize; 2] = [1 << 10, 16 << 10];

/// Whether the vectors won, at each of the lengths.
static WIDE: LazyLock<[bool; 2]> = LazyLock::new(|| RACES.map(is_wide_quicker));

/// Lets them race if they have not yet, so that no frame has to wait for it.
pub(crate) fn race() {
    LazyLock::force(&WIDE);
}

/// crc32c of these bytes (Castagnoli, as in RFC 3720).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() < SHORT && is_x86_feature_detected!("sse4.2") {
        // SAFETY: this CPU has the instruction.
        unsafe { short(bytes) }
    } else if bytes.len() >= SHORT && WIDE[usize::from(bytes.len() >= LONG)] {
        wide(bytes)
    } else {
        crc32c::crc32c(bytes)
    }
}

/// A small entry's frame is two sums of some fifty bytes, and most of their time was the way to the instruction.
#[target_feature(enable = "sse4.2")]
fn short(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let sum =
        words.iter().fold(u64::from(u32::MAX), |sum, word| _mm_crc32_u64(sum, u64::from_le_bytes(*word)));
    !rest.iter().fold(sum as u32, |sum, byte| _mm_crc32_u8(sum, *byte))
}

fn wide(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The best of some turns, which the host's other work cannot make look good.
fn is_wide_quicker(len: usize) -> bool {
    const TURNS: usize = 32;
    let bytes = [0x5a; RACES[1]];
    let took = |sum: fn(&[u8]) -> u32| {
        let start = Instant::now();
        // Several at once: one is near the clock's resolution.
        for _ in 0..RACES[1] / len {
            black_box(sum(black_box(&bytes[..len])));
        }
        start.elapsed()
    };
    let (mut instruction, mut vectors) = (Duration::MAX, Duration::MAX);
    for _ in 0..TURNS {
        instruction = instruction.min(took(crc32c::crc32c));
        vectors = vectors.min(took(wide));
    }
    vectors < instruction
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_the_same_sum() {
        let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n * 7 + n / 256) as u8).collect();
        for len in (0..2 * SHORT).chain([1024, 1040, 4095, LONG - 1, LONG, 20_000]) {
            let bytes = &bytes[..len];
            assert_eq!(wide(bytes), crc32c::crc32c(bytes), "{len}");
            assert_eq!(crc32c(bytes), wide(bytes), "{len}");
        }
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_race_has_an_end() {
        for len in RACES {
            println!("{len} bytes: vectors are quicker: {}", is_wide_quicker(len));
        }
    }
}
