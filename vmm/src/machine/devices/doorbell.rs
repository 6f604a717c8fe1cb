//! The doorbell page of the embedded guest: all that a small guest needs beside virtio, as one page of
//! MMIO, which its main loop can use from ring 3.
//!
//! | offset | access | meaning |
//! |---|---|---|
//! | 0 | read, 8 bytes, or 4 for the low half | idle: as HLT until an interrupt is pending, then virtual time in ns |
//! | 8 | write, 4 bytes | 1: power off, 2: reset |
//! | 16 | write, 1 byte | a character for the serial line |
//!
//! All other reads give ones, all other writes are ignored. Values are little-endian. The page has no
//! state; waiting is the board's part.

use super::Effect;
use crate::machine::output::PowerEvent;
use crate::machine::time::VirtualTime;

/// The size of the doorbell page in bytes.
pub const SIZE: u64 = 0x1000;

const IDLE: u64 = 0;
const POWER: u64 = 8;
const CHARACTER: u64 = 16;

/// What a write to the page asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellCommand {
    /// Switch the machine off.
    PowerOff,
    /// Reset the machine.
    Reset,
    /// Send this byte on the serial line.
    Serial(u8),
}

impl From<DoorbellCommand> for Effect {
    fn from(command: DoorbellCommand) -> Self {
        match command {
            DoorbellCommand::PowerOff => Self::Power(PowerEvent::Off),
            DoorbellCommand::Reset => Self::Power(PowerEvent::Reset),
            DoorbellCommand::Serial(byte) => Self::Serial(byte),
        }
    }
}

/// What the write of `data` at byte `offset` of the page asks for; `None` if it is to be ignored.
#[must_use]
pub fn decode_write(offset: u64, data: &[u8]) -> Option<DoorbellCommand> {
    match (offset, data) {
        (POWER, [1, 0, 0, 0]) => Some(DoorbellCommand::PowerOff),
        (POWER, [2, 0, 0, 0]) => Some(DoorbellCommand::Reset),
        (CHARACTER, &[byte]) => Some(DoorbellCommand::Serial(byte)),
        _ => None,
    }
}

/// Whether a read of `len` bytes at byte `offset` means idle: the board lets the vCPU wait as in HLT,
/// and answers with [`read`] afterwards.
#[must_use]
pub fn is_idle(offset: u64, len: usize) -> bool {
    offset == IDLE && matches!(len, 4 | 8)
}

/// Answers a read at byte `offset` of the page.
pub fn read(now: VirtualTime, offset: u64, data: &mut [u8]) {
    data.fill(0xff);
    if is_idle(offset, data.len()) {
        let len = data.len();
        data.copy_from_slice(&now.as_nanos().to_le_bytes()[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands() {
        assert_eq!(decode_write(8, &1u32.to_le_bytes()), Some(DoorbellCommand::PowerOff));
        assert_eq!(decode_write(8, &2u32.to_le_bytes()), Some(DoorbellCommand::Reset));
        assert_eq!(decode_write(16, b"x"), Some(DoorbellCommand::Serial(b'x')));
        assert_eq!(Effect::from(DoorbellCommand::PowerOff), Effect::Power(PowerEvent::Off));
        assert_eq!(Effect::from(DoorbellCommand::Reset), Effect::Power(PowerEvent::Reset));
        assert_eq!(Effect::from(DoorbellCommand::Serial(7)), Effect::Serial(7));
    }

    #[test]
    fn all_other_writes_are_ignored() {
        assert_eq!(decode_write(8, &0x0100_0001_u32.to_le_bytes()), None);
        assert_eq!(decode_write(8, &1u64.to_le_bytes()), None);
        assert_eq!(decode_write(8, &[1]), None);
        assert_eq!(decode_write(16, b"xy"), None);
        assert_eq!(decode_write(0, &1u32.to_le_bytes()), None);
        assert_eq!(decode_write(u64::MAX, &[]), None);
    }

    proptest! {
        #[test]
        fn idle_tells_the_time_and_all_else_reads_ones(nanos: u64, offset in 0u64..64, len in 0usize..17) {
            let mut data = vec![0; len];
            read(VirtualTime::from_nanos(nanos), offset, &mut data);
            match (offset, len) {
                (0, 8) => prop_assert_eq!(data, nanos.to_le_bytes()),
                (0, 4) => prop_assert_eq!(data, (nanos as u32).to_le_bytes()),
                _ => prop_assert!(data.iter().all(|&byte| byte == 0xff)),
            }
        }
    }
}
