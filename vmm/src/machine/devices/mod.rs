//! Devices of the PC: interrupt controller, timers, clock, serial line, power.
//!
//! Each is one readable file and computes from `VirtualTime` alone. All volatile state sits in one
//! `State` struct that derives `Clone, PartialEq, Eq, Hash`, so that two machines can be compared and a
//! digest taken; the device derives them too. The board calls a device through
//!
//! - `PortDevice`: port reads and writes;
//! - `advance(&mut self, now)`: virtual time moved on (timers only);
//! - `deadline(&self) -> Option<VirtualTime>`: the moment at which its interrupt line will rise next if
//!   nobody touches the device until then (timers only). The host may call `advance` later than
//!   that, or in any number of steps: the outcome is the same;
//! - `interrupt(&self) -> bool`: the level of its interrupt line. Ask after each access and each `advance`.
//!
//! No access of a guest makes a device panic, allocate without bound, or loop for long.

use super::output::PowerEvent;
use super::time::VirtualTime;
use std::ops::RangeInclusive;

/// The doorbell page of the embedded guest.
pub mod doorbell;

/// High precision event timer: a clock in memory.
pub mod hpet;

/// Keyboard controller, for its reset line.
pub mod i8042;

/// The pair of 8259A interrupt controllers.
pub mod pic;

/// The 8254 interval timer and port 0x61.
pub mod pit;

/// ACPI PM1a event and control registers: power-off.
pub mod pm1;

/// ACPI power management timer.
pub mod pmtimer;

/// Reset control register, port 0xcf9.
pub mod reset;

/// MC146818 real-time clock with CMOS memory.
pub mod rtc;

/// 16550A serial port.
pub mod serial;

/// What a write does beyond the device it went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A byte left the serial port.
    Serial(u8),
    /// The guest wants to be switched off or reset.
    Power(PowerEvent),
}

/// A device that answers I/O ports.
///
/// These chips sit on an eight-bit bus: a wider access is carried out as one access per byte, at rising
/// ports and at one moment, as the ISA bus does. Bytes past the device's own ports read as ones.
pub trait PortDevice {
    /// The ports this device answers.
    fn ports(&self) -> &'static [RangeInclusive<u16>];

    /// The guest reads the byte at `port`.
    fn read_byte(&mut self, now: VirtualTime, port: u16) -> u8;

    /// The guest writes `value` to `port`. A single access has at most one effect.
    #[must_use]
    fn write_byte(&mut self, now: VirtualTime, port: u16, value: u8) -> Option<Effect>;

    /// The guest reads `data.len()` bytes at `port`. A length other than 1, 2 or 4 reads as ones.
    fn read(&mut self, now: VirtualTime, port: u16, data: &mut [u8]) {
        self.read_bytes(now, port, data);
    }

    /// [`PortDevice::read`], byte by byte.
    fn read_bytes(&mut self, now: VirtualTime, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if matches!(data.len(), 1 | 2 | 4) {
            for (byte, port) in data.iter_mut().zip(port..=u16::MAX) {
                *byte = self.read_byte(now, port);
            }
        }
    }

    /// The guest writes `data` at `port`. A length other than 1, 2 or 4 is ignored.
    #[must_use]
    fn write(&mut self, now: VirtualTime, port: u16, data: &[u8]) -> Option<Effect> {
        let mut effect = None;
        if matches!(data.len(), 1 | 2 | 4) {
            for (&byte, port) in data.iter().zip(port..=u16::MAX) {
                effect = effect.or(self.write_byte(now, port, byte));
            }
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down which byte goes where, and answers a port's low half.
    #[derive(Default)]
    struct Recorder(Vec<(u16, u8)>);

    impl PortDevice for Recorder {
        fn ports(&self) -> &'static [RangeInclusive<u16>] {
            &[]
        }

        fn read_byte(&mut self, _now: VirtualTime, port: u16) -> u8 {
            port as u8
        }

        fn write_byte(&mut self, _now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
            self.0.push((port, value));
            (value == 0xee).then_some(Effect::Serial(value))
        }
    }

    #[test]
    fn wide_accesses_go_byte_by_byte() {
        let mut device = Recorder::default();
        let now = VirtualTime::ZERO;
        assert_eq!(device.write(now, 0x70, &[1, 0xee]), Some(Effect::Serial(0xee)));
        assert_eq!(device.write(now, 0xfffe, &[3, 4, 5, 6]), None);
        for odd in [&[][..], &[7; 3], &[7; 8]] {
            assert_eq!(device.write(now, 0x70, odd), None);
        }
        assert_eq!(device.0, [(0x70, 1), (0x71, 0xee), (0xfffe, 3), (0xffff, 4)]);
        let mut data = [0; 4];
        device.read(now, 0xfffd, &mut data);
        assert_eq!(data, [0xfd, 0xfe, 0xff, 0xff]);
        let mut odd = [0; 3];
        device.read(now, 0x70, &mut odd);
        assert_eq!(odd, [0xff; 3]);
    }

    #[test]
    fn timer_ticks_reach_the_processor() {
        // The board's wiring: OUT0 to IRQ 0, the guest in a loop of HLT, acknowledge and EOI.
        let (mut pit, mut pic) = (pit::Pit::new(), pic::Pic::new());
        let start = VirtualTime::ZERO;
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01)] {
            assert_eq!(pic.write(start, port, &[value]), None);
        }
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
            assert_eq!(pit.write(start, port, &[value]), None);
        }
        let end = VirtualTime::from_nanos(1_000_000_000);
        let mut ticks = 0;
        while let Some(now) = pit.deadline().filter(|&deadline| deadline <= end) {
            pit.advance(now).drive(|level| pic.set_line(0, level));
            assert!(pic.pending());
            assert_eq!(pic.acknowledge(), 0x30);
            assert_eq!(pic.write(now, 0x20, &[0x20]), None);
            assert!(!pic.pending());
            ticks += 1;
        }
        assert_eq!(ticks, (pit::HERTZ - 1) / 0x2e9c);
    }
}
