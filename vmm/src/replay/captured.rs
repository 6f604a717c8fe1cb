//! Values of captured instructions on their way from the log into the kernel module.

use std::collections::VecDeque;

use tandem_kmod_brain::codec::Codec;
use tandem_kmod_brain::ring::Entry;

use crate::machine::cpu::capture::{CaptureError, QUANTUM};
use crate::machine::vm::Machine;

/// What a follower holds of them.
#[derive(Debug)]
pub struct Captured {
    codec: Codec,
    /// Values that the guest has not got yet, the oldest first; those in the module's ring are the first.
    values: VecDeque<Entry>,
    /// How many are in the module's ring.
    given: usize,
    /// How many the guest may take before the next point that is known, less those that it has taken.
    allowed: u64,
    /// Ordinal of the next value off the log.
    ordinal: u64,
}

impl Captured {
    /// None yet; the virtual TSC was last read as `tsc`.
    #[must_use]
    pub const fn new(tsc: u64) -> Self {
        Self { codec: Codec::new(QUANTUM, tsc), values: VecDeque::new(), given: 0, allowed: 0, ordinal: 0 }
    }

    /// Unpacks the values of a batch, and tells how many.
    ///
    /// # Errors
    /// The offset of the byte at which they are damaged.
    pub fn add(&mut self, mut bytes: &[u8]) -> Result<u64, usize> {
        let (whole, before) = (bytes.len(), self.ordinal);
        loop {
            match self.codec.decode(bytes) {
                Ok(Some((trap, value, len))) => {
                    self.values.push_back(Entry { trap, value, ordinal: self.ordinal });
                    self.ordinal += 1;
                    bytes = bytes.get(len..).unwrap_or_default();
                }
                Ok(None) => return Ok(self.ordinal - before),
                Err(_) => return Err(whole - bytes.len()),
            }
        }
    }

    /// Lets the guest execute at most `count` captured instructions from here, and gives the module as many values
    /// as are there and fit.
    ///
    /// # Errors
    /// When the module's memory is damaged.
    pub fn allow(&mut self, machine: &mut Machine, count: u64) -> Result<(), CaptureError> {
        if !machine.captures() {
            return Ok(());
        }
        self.allowed = count;
        machine.limit_captured(Some(count));
        while let Some(entry) = self.values.get(self.given) {
            if self.given as u64 >= count || !machine.feed_captured(entry)? {
                break;
            }
            self.given += 1;
        }
        Ok(())
    }

    /// The guest has executed `count` of them.
    ///
    /// # Errors
    /// When there were not so many: the offset is zero, for no byte is to blame.
    pub fn executed(&mut self, count: u64) -> Result<(), usize> {
        let count = usize::try_from(count).map_err(|_| 0_usize)?;
        if count > self.given {
            return Err(0);
        }
        self.values.drain(..count);
        self.given -= count;
        self.allowed = self.allowed.saturating_sub(count as u64);
        Ok(())
    }

    /// The guest passes over `count` of them, by an image. The module's ring is empty afterwards.
    ///
    /// # Errors
    /// As [`Captured::executed`].
    pub fn skip(&mut self, count: u64) -> Result<(), usize> {
        let count = usize::try_from(count).ok().filter(|count| *count <= self.values.len()).ok_or(0_usize)?;
        self.values.drain(..count);
        self.given = 0;
        Ok(())
    }

    /// Whether a guest that was paused can go on: it has used up the module's ring, which can be filled again.
    #[must_use]
    pub fn can_go_on(&self) -> bool {
        self.given == 0 && self.allowed > 0 && !self.values.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_kmod_brain::trap::Trap;

    fn packed(values: &[u64]) -> Vec<u8> {
        let mut codec = Codec::new(QUANTUM, 0);
        values.iter().flat_map(|value| codec.encode(Trap::Rdtsc, *value).as_bytes().to_vec()).collect()
    }

    #[test]
    fn values_are_passed_over_once_and_damage_is_an_offset() {
        let mut captured = Captured::new(0);
        captured.add(&packed(&[16, 32, 48, 64])).unwrap();
        captured.given = 2;
        captured.executed(1).unwrap();
        assert_eq!(captured.executed(2), Err(0), "only one was given");
        captured.skip(2).unwrap();
        assert_eq!(captured.values.iter().map(|e| (e.value, e.ordinal)).collect::<Vec<_>>(), [(64, 3)]);
        assert_eq!(captured.skip(2), Err(0));
        assert_eq!(captured.add(&[2, 0, 9]), Err(1));
    }
}
