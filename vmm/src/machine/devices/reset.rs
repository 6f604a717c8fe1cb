//! Reset control register at port 0xcf9, as in Intel's south bridges (ICH data sheet, RST_CNT).
//!
//! Bit 1 chooses the kind of reset, bit 3 a full power cycle; writing bit 2 as one resets. All kinds
//! reset the whole machine here.

use super::{Effect, PortDevice};
use crate::machine::output::PowerEvent;
use crate::machine::time::VirtualTime;
use std::ops::RangeInclusive;

const PORT: u16 = 0xcf9;
const PORTS: [RangeInclusive<u16>; 1] = [PORT..=PORT];

const KIND: u8 = 0b1010;
const RESET: u8 = 0b0100;

/// The reset control register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResetControl {
    state: State,
}

/// The volatile state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    kind: u8,
}

impl ResetControl {
    /// The register at power-on: zero.
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

impl PortDevice for ResetControl {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read_byte(&mut self, _now: VirtualTime, port: u16) -> u8 {
        if port == PORT { self.state.kind } else { 0xff }
    }

    fn write_byte(&mut self, _now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
        if port != PORT {
            return None;
        }
        self.state.kind = value & KIND;
        (value & RESET != 0).then_some(Effect::Power(PowerEvent::Reset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: VirtualTime = VirtualTime::ZERO;

    #[test]
    fn linux_reboots_by_it() {
        // native_machine_emergency_restart, BOOT_CF9_FORCE.
        let mut reset = ResetControl::new();
        let mut cf9 = [0];
        reset.read(NOW, PORT, &mut cf9);
        let cf9 = cf9[0] & !0x06;
        assert_eq!(reset.write(NOW, PORT, &[cf9 | 2]), None);
        assert_eq!(reset.write(NOW, PORT, &[cf9 | 6]), Some(Effect::Power(PowerEvent::Reset)));
    }

    #[test]
    fn wide_accesses_touch_only_the_one_port() {
        let mut reset = ResetControl::new();
        assert_eq!(reset.write(NOW, PORT, &[0xfb, 0xff, 0xff, 0xff]), None);
        let mut data = [0; 4];
        reset.read(NOW, PORT, &mut data);
        assert_eq!(data, [0x0a, 0xff, 0xff, 0xff]);
        assert_eq!(reset.write(NOW, PORT - 1, &[0, 4]), Some(Effect::Power(PowerEvent::Reset)));
        assert_eq!(reset.write(NOW, PORT, &[4; 3]), None);
    }
}
