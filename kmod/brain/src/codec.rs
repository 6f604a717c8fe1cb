// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! Captured values as they travel in the log: about two bytes each.
//!
//! A TSC reading is its distance from the one before, in quanta, with one bit for which of the two
//! instructions it was: 7 bits to a byte, low ones first, the top bit set on all bytes but the last. Two bytes
//! reach 8,190 quanta: 131 µs at 16 ns. Zero introduces anything else: a byte with the trap's number, then the
//! value itself.

use super::trap::Trap;

/// The longest encoding of one value, in bytes.
pub const LONGEST: usize = 12;

/// The encoding of one value.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Encoded {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn put(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(value as u8 | 0x80);
            value >>= 7;
        }
        self.put(value as u8);
    }
}

/// What both ends remember: the last TSC reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codec {
    quantum: u32,
    last: u64,
}

/// Bytes that are no encoding of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl Codec {
    /// A codec for readings that are multiples of 2^`quantum`, of which the last was `last`. `quantum` is at
    /// most [`super::clock::VirtualTsc::MAX_QUANTUM`].
    #[must_use]
    pub const fn new(quantum: u32, last: u64) -> Self {
        Self { quantum: if quantum > 63 { 63 } else { quantum }, last }
    }

    /// The last TSC reading encoded or decoded.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Encodes a value.
    pub fn encode(&mut self, trap: Trap, value: u64) -> Encoded {
        let mut encoded = Encoded { bytes: [0; LONGEST], len: 0 };
        let distance = value.wrapping_sub(self.last);
        let quanta = distance >> self.quantum;
        if trap.reads_tsc() && quanta << self.quantum == distance && quanta >> 62 == 0 {
            encoded.put_varint((quanta << 1 | u64::from(trap.number())) + 1);
        } else {
            encoded.put(0);
            encoded.put(trap.number());
            encoded.put_varint(value);
        }
        if trap.reads_tsc() {
            self.last = value;
        }
        encoded
    }

    /// Decodes the value that `bytes` begin with, and tells how many bytes it took. `None` if there are no
    /// bytes.
    ///
    /// # Errors
    /// When they are no value. The codec is as before then.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Option<(Trap, u64, usize)>, Damaged> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let (code, len) = varint(bytes)?;
        let (trap, value, len) = if code == 0 {
            let trap = bytes.get(1).and_then(|number| Trap::of(*number)).ok_or(Damaged)?;
            let (value, more) = varint(bytes.get(2..).ok_or(Damaged)?)?;
            (trap, value, 2 + more)
        } else {
            let code = code - 1;
            let trap = if code & 1 == 0 { Trap::Rdtsc } else { Trap::Rdtscp };
            (trap, self.last.wrapping_add((code >> 1) << self.quantum), len)
        };
        if trap.reads_tsc() {
            self.last = value;
        }
        Ok(Some((trap, value, len)))
    }
}

fn varint(bytes: &[u8]) -> Result<(u64, usize), Damaged> {
    let mut value = 0;
    for (number, byte) in bytes.iter().take(10).enumerate() {
        let shift = 7 * number as u32;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            return Err(Damaged);
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok((value, number + 1));
        }
    }
    Err(Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_of_a_busy_guest_take_one_or_two_bytes() {
        let mut codec = Codec::new(4, 0);
        assert_eq!(codec.encode(Trap::Rdtsc, 1008).as_bytes().len(), 1);
        assert_eq!(codec.encode(Trap::Rdtscp, 130_992).as_bytes().len(), 2);
        assert_eq!(codec.encode(Trap::Rdtsc, 130_992).as_bytes().len(), 1);
        assert_eq!(codec.encode(Trap::Rdtsc, 130_992 + 16_000_000).as_bytes().len(), 3);
        assert_eq!(codec.encode(Trap::Rdpmc, 0).as_bytes(), [0, 2, 0]);
        assert_eq!(codec.encode(Trap::Rdrand, u64::MAX).as_bytes().len(), LONGEST);
        assert_eq!(codec.encode(Trap::Rdseed, 0x7f).as_bytes(), [0, 4, 0x7f]);
    }

    proptest! {
        #[test]
        fn values_come_back(
            quantum in 0u32..21, start: u64,
            values in proptest::collection::vec(
                (0u8..5, prop_oneof![0u64..1000, 0u64..1 << 40, any::<u64>()]), 0..50),
        ) {
            let mut encoder = Codec::new(quantum, start);
            let mut stream = Vec::new();
            let mut wanted = Vec::new();
            let mut tsc = start;
            for (number, step) in values {
                let trap = Trap::of(number).unwrap();
                let value = if trap.reads_tsc() { tsc = tsc.wrapping_add(step); tsc } else { step };
                let encoded = encoder.encode(trap, value);
                stream.extend_from_slice(encoded.as_bytes());
                wanted.push((trap, value));
            }
            let (mut decoder, mut at, mut found) = (Codec::new(quantum, start), 0, Vec::new());
            while let Some((trap, value, len)) = decoder.decode(&stream[at..]).unwrap() {
                found.push((trap, value));
                at += len;
            }
            prop_assert_eq!(found, wanted);
            prop_assert_eq!(decoder, encoder);
        }

        #[test]
        fn damaged_streams_are_errors_or_values_and_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), quantum in 0u32..21, last: u64,
        ) {
            let (mut codec, mut at) = (Codec::new(quantum, last), 0);
            while let Ok(Some((_, _, len))) = codec.decode(&bytes[at..]) { at += len; }
        }
    }
}
