//! crc32c, in the way that is the quickest on this CPU.
//!
//! Three chains of the CRC instruction, or carry-less multiplication of wide vectors: which of them is quicker depends on
//! the CPU and on the length. So they race once, when a process sets up its first channel.
//!
//! The chains are ours: the instruction takes three cycles and starts every cycle, but crates have chains of fixed
//! lengths, and a frame of 1 KiB is a short one and a rest by a single chain (on an EPYC 85 ns where this takes 47).

use std::arch::x86_64::{
    _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
};
use std::hint::black_box;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Below this length nothing is quicker than the CRC instruction.
const SHORT: usize = 256;
/// From this length on the second race counts.
const LONG: usize = 8 << 10;
/// Lengths at which they race.
const RACES: [usize; 2] = [1 << 10, 16 << 10];

/// The longest chain, in words of 8 bytes.
const LONGEST: usize = 128;
/// The shortest: below it one chain is quicker than three that have to be brought together (on an EPYC up to 192 bytes,
/// at 96 by a third).
const SHORTEST: usize = 8;

/// Whether the vectors won, at each of the lengths.
static WIDE: LazyLock<[bool; 2]> = LazyLock::new(|| RACES.map(is_wide_quicker));

/// By number of words that follow: the factor of [`followed_by`].
static FACTORS: [u32; 2 * LONGEST + 1] = factors();

/// Lets them race if they have not yet, so that no frame has to wait for it.
pub(crate) fn race() {
    LazyLock::force(&WIDE);
}

/// crc32c of these bytes (Castagnoli, as in RFC 3720).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() >= SHORT && WIDE[usize::from(bytes.len() >= LONG)] {
        wide(bytes)
    } else {
        by_instruction(bytes)
    }
}

fn by_instruction(bytes: &[u8]) -> u32 {
    if is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq") {
        // SAFETY: this CPU has the instructions.
        unsafe { chains(bytes) }
    } else {
        crc32c::crc32c(bytes)
    }
}

#[target_feature(enable = "sse4.2,pclmulqdq")]
fn chains(bytes: &[u8]) -> u32 {
    let (mut words, rest) = bytes.as_chunks::<8>();
    let add = |sum, word: &[u8; 8]| _mm_crc32_u64(sum, u64::from_le_bytes(*word));
    let mut sum = u64::from(u32::MAX);
    while words.len() >= 3 * SHORTEST {
        let len = (words.len() / 3).min(LONGEST);
        let (first, behind) = words.split_at(len);
        let (second, behind) = behind.split_at(len);
        let (third, behind) = behind.split_at(len);
        let (mut b, mut c) = (0, 0);
        for ((first, second), third) in first.iter().zip(second).zip(third) {
            sum = add(sum, first);
            b = add(b, second);
            c = add(c, third);
        }
        sum = c ^ _mm_crc32_u64(0, followed_by(2 * len, sum) ^ followed_by(len, b));
        words = behind;
    }
    sum = words.iter().fold(sum, add);
    !rest.iter().fold(sum as u32, |sum, byte| _mm_crc32_u8(sum, *byte))
}

/// What a sum of bytes becomes when so many words follow that are zero, before the instruction reduces it: the sum is a
/// polynomial over GF(2) that is multiplied by x^64 for each word. The product of two polynomials with their bits
/// reversed is one place off, and the instruction multiplies by x^32, so the factor lacks both.
#[target_feature(enable = "pclmulqdq")]
fn followed_by(words: usize, sum: u64) -> u64 {
    let factor = _mm_cvtsi64_si128(i64::from(FACTORS[words]));
    _mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi64_si128(sum as i64), factor, 0)) as u64
}

/// x^(64 n - 33) modulo Castagnoli's polynomial, its bits reversed, for each n but 0.
const fn factors() -> [u32; 2 * LONGEST + 1] {
    /// RFC 3720, 12.1, without its first term and with its bits reversed.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut factors = [0; 2 * LONGEST + 1];
    // x^31 for one word, the last place when bits are reversed.
    let (mut power, mut words) = (1_u32, 1);
    while words < factors.len() {
        factors[words] = power;
        let mut times = 0;
        while times < 64 {
            power = (power >> 1) ^ (POLYNOMIAL * (power & 1));
            times += 1;
        }
        words += 1;
    }
    factors
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
        instruction = instruction.min(took(by_instruction));
        vectors = vectors.min(took(wide));
    }
    vectors < instruction
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn all_ways_are_the_same_sum() {
        let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n * 7 + n / 256) as u8).collect();
        for len in (0..7 * LONGEST * 8).step_by(5).chain(0..2 * SHORT).chain([LONG - 1, LONG, 20_000]) {
            let bytes = &bytes[..len];
            let sum = crc32c::crc32c(bytes);
            for way in [wide, by_instruction, crc32c] {
                assert_eq!(way(bytes), sum, "{len}");
            }
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
