//! ACPI PM1a event and control registers (ACPI 6.5, sections 4.8.3.1 and 4.8.3.2.1): soft-off.
//!
//! Status, enable and control, of sixteen bits each, at port 0x600 and following, where QEMU's machines have them too.
//! Setting SLP_EN with SLP_TYP 5 powers the machine off; other sleep types do nothing. No event of theirs ever comes:
//! status is zero, and SCI is never raised.

use super::{Effect, PortDevice};
use crate::machine::output::PowerEvent;
use crate::machine::time::VirtualTime;
use std::ops::RangeInclusive;

/// Port of the status register, with the enable register behind it.
pub const EVENT_PORT: u16 = 0x600;
/// Port of the control register.
pub const CONTROL_PORT: u16 = 0x604;

const PORTS: [RangeInclusive<u16>; 1] = [EVENT_PORT..=CONTROL_PORT + 1];

// The bits of the register's high byte.
const SLP_TYP: u8 = 0b1_1100;
const SLP_EN: u8 = 0b10_0000;
const SLP_TYP_OFF: u8 = 5 << 2;

/// The low byte's SCI_EN: the machine is always in ACPI mode.
const SCI_EN: u8 = 1;

/// The PM1a registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pm1 {
    state: State,
}

/// The volatile state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    enabled: [u8; 2],
    low: u8,
    high: u8,
}

impl Pm1 {
    /// The registers at power-on: zero, but for SCI_EN.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The volatile state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes over a state, from another machine's register.
    pub fn restore(&mut self, state: State) {
        self.state = state;
    }
}

impl PortDevice for Pm1 {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read_byte(&mut self, _now: VirtualTime, port: u16) -> u8 {
        match port {
            0x600 | 0x601 => 0,
            0x602 | 0x603 => self.state.enabled[usize::from(port & 1)],
            0x604 => self.state.low | SCI_EN,
            0x605 => self.state.high,
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, _now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
        match port {
            0x602 | 0x603 => self.state.enabled[usize::from(port & 1)] = value,
            0x604 => self.state.low = value,
            0x605 => {
                self.state.high = value & !SLP_EN; // SLP_EN reads as zero
                if value & SLP_EN != 0 && value & SLP_TYP == SLP_TYP_OFF {
                    return Some(Effect::Power(PowerEvent::Off));
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: VirtualTime = VirtualTime::ZERO;

    #[test]
    fn sleep_type_5_powers_off() {
        let mut pm1 = Pm1::new();
        let off = Some(Effect::Power(PowerEvent::Off));
        assert_eq!(pm1.write(NOW, 0x604, &(0x2000u16 | 5 << 10).to_le_bytes()), off);
        assert_eq!(pm1.write(NOW, 0x604, &0xf401_u32.to_le_bytes()), off);
        assert_eq!(pm1.write(NOW, 0x605, &[0x34]), off);
    }

    #[test]
    fn all_else_is_kept_and_harmless() {
        let mut pm1 = Pm1::new();
        for word in (0..=u16::MAX).filter(|word| word & 0x3c00 != 0x3400) {
            assert_eq!(pm1.write(NOW, 0x604, &word.to_le_bytes()), None);
            let mut data = [0; 2];
            pm1.read(NOW, 0x604, &mut data);
            assert_eq!(u16::from_le_bytes(data), word & !0x2000 | 1);
        }
        for (port, kept) in [(0x600, 0), (0x602, 0x0121)] {
            assert_eq!(pm1.write(NOW, port, &0x0121u16.to_le_bytes()), None);
            let mut data = [0; 2];
            pm1.read(NOW, port, &mut data);
            assert_eq!(u16::from_le_bytes(data), kept);
        }
    }
}
