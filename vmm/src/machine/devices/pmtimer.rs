//! ACPI power management timer (ACPI 6.5, section 4.8.2.1): a free-running counter of 3.579545 MHz.
//!
//! It has no state: its value is a function of virtual time. Linux finds it in the FADT and uses it as a clocksource where there
//! is no HPET, or with `acpi=off pmtmr=0x608`. Its overflow interrupt is not built, nor does Linux ask for it.

use super::{Effect, PortDevice};
use crate::machine::time::VirtualTime;
use std::ops::RangeInclusive;

/// The counter's frequency in hertz.
pub const HERTZ: u64 = 3_579_545;

/// Its first port.
pub const PORT: u16 = 0x608;
const PORTS: [RangeInclusive<u16>; 1] = [PORT..=PORT + 3];

/// The ACPI power management timer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PmTimer {
    // Static configuration
    width: Width,
}

/// How many bits the counter has before it wraps: the TMR_VAL_EXT flag of the FADT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Width {
    /// 24 bits: wraps every 4.69 s. The eight bits above read as zero. What Linux takes for granted.
    #[default]
    Bits24,
    /// 32 bits: wraps every 20 minutes.
    Bits32,
}

impl PmTimer {
    /// A timer that counts from power-on.
    #[must_use]
    pub fn new(width: Width) -> Self {
        Self { width }
    }

    /// The counter's value at `now`.
    #[must_use]
    pub fn value(&self, now: VirtualTime) -> u32 {
        let ticks = now.ticks_of(HERTZ) as u32;
        match self.width {
            Width::Bits24 => ticks & 0x00ff_ffff,
            Width::Bits32 => ticks,
        }
    }
}

impl PortDevice for PmTimer {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read(&mut self, now: VirtualTime, port: u16, data: &mut [u8]) {
        match data {
            [_, _, _, _] if port == PORT => data.copy_from_slice(&self.value(now).to_le_bytes()),
            _ => self.read_bytes(now, port, data),
        }
    }

    fn read_byte(&mut self, now: VirtualTime, port: u16) -> u8 {
        let byte = usize::from(port.wrapping_sub(PORT));
        self.value(now).to_le_bytes().get(byte).copied().unwrap_or(0xff)
    }

    fn write_byte(&mut self, _now: VirtualTime, _port: u16, _value: u8) -> Option<Effect> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::time::NANOS_PER_SECOND;
    use proptest::prelude::*;

    #[test]
    fn counts_seconds_exactly() {
        for second in 0..1000 {
            let now = VirtualTime::from_nanos(second * NANOS_PER_SECOND);
            assert_eq!(PmTimer::new(Width::Bits24).value(now), (second * HERTZ) as u32 & 0xff_ffff);
            assert_eq!(PmTimer::new(Width::Bits32).value(now), (second * HERTZ) as u32);
        }
    }

    proptest! {
        #[test]
        fn any_access_reads_the_bytes_of_the_value(
            nanos: u64, wide: bool, offset in 0u16..8, len in 0usize..9
        ) {
            let now = VirtualTime::from_nanos(nanos);
            let mut timer = PmTimer::new(if wide { Width::Bits32 } else { Width::Bits24 });
            let mut image = [0xff; 16];
            image[..4].copy_from_slice(&timer.value(now).to_le_bytes());
            let mut data = vec![0; len];
            timer.read(now, PORT + offset, &mut data);
            if matches!(len, 1 | 2 | 4) {
                prop_assert_eq!(&data[..], &image[offset.into()..][..len]);
            } else {
                prop_assert!(data.iter().all(|&byte| byte == 0xff));
            }
            prop_assert_eq!(timer.write(now, PORT + offset, &data), None);
        }

        #[test]
        fn never_runs_backwards_within_a_wrap(nanos in 0u64..u64::MAX / 2, step in 0u64..4_000_000_000) {
            let timer = PmTimer::new(Width::Bits24);
            let before = VirtualTime::from_nanos(nanos);
            let passed = timer.value(before + step).wrapping_sub(timer.value(before)) & 0xff_ffff;
            let exact = (u128::from(step) * u128::from(HERTZ) / 1_000_000_000) as u32;
            prop_assert!(passed == exact || passed == exact + 1);
        }
    }
}
