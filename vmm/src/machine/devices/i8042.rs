//! Keyboard controller: an i8042 with nothing plugged in.
//!
//! Guests reset the machine through it (command 0xfe), and Linux probes it at boot: each command that has
//! an answer is answered at once, so that no driver waits for a timeout. A byte sent to the keyboard is
//! lost. IRQ 1 and 12 never rise.

use super::{Effect, PortDevice};
use crate::machine::output::PowerEvent;
use crate::machine::time::VirtualTime;
use std::ops::RangeInclusive;

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;
const PORTS: [RangeInclusive<u16>; 2] = [DATA..=DATA, COMMAND..=COMMAND];

// Status register. The input buffer is never full: a byte is taken when it is written.
const OUTPUT_FULL: u8 = 0x01;
const SELF_TEST_PASSED: u8 = 0x04;
const LAST_WAS_COMMAND: u8 = 0x08;
const KEYLOCK_OPEN: u8 = 0x10;

// Configuration byte.
const KEYBOARD_OFF: u8 = 0x10;
const AUX_OFF: u8 = 0x20;

/// The lines of the output port at rest: not in reset, A20 open.
const OUTPUT_PORT: u8 = 0x03;
const NOT_RESET: u8 = 0x01;

/// The keyboard controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct I8042 {
    state: State,
}

/// The volatile state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The configuration ("command") byte.
    config: u8,
    output_port: u8,
    /// The byte in the output buffer, which the guest has not read yet.
    output: Option<u8>,
    /// What the guest read last: an empty buffer still shows it.
    last_output: u8,
    /// The command whose parameter comes with the next data byte.
    parameter_of: Option<u8>,
    last_was_command: bool,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// A controller as firmware would leave it, both ports disabled.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State {
                config: SELF_TEST_PASSED | KEYBOARD_OFF | AUX_OFF,
                output_port: OUTPUT_PORT,
                output: None,
                last_output: 0,
                parameter_of: None,
                last_was_command: false,
            },
        }
    }

    /// The volatile state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes over a state, from another machine's controller.
    pub fn restore(&mut self, state: State) {
        self.state = state;
    }

    fn status(&self) -> u8 {
        let output = if self.state.output.is_some() { OUTPUT_FULL } else { 0 };
        let command = if self.state.last_was_command { LAST_WAS_COMMAND } else { 0 };
        SELF_TEST_PASSED | KEYLOCK_OPEN | output | command
    }

    fn command(&mut self, command: u8) -> Option<Effect> {
        let state = &mut self.state;
        state.last_was_command = true;
        state.parameter_of = None;
        match command {
            0x20 => state.output = Some(state.config),
            0xa7 => state.config |= AUX_OFF,
            0xa8 => state.config &= !AUX_OFF,
            0xa9 => state.output = Some(0x01), // test of the auxiliary port: clock line stuck, so no mouse
            0xaa => state.output = Some(0x55), // self-test passed
            0xab => state.output = Some(0x00), // test of the keyboard port: fine
            0xad => state.config |= KEYBOARD_OFF,
            0xae => state.config &= !KEYBOARD_OFF,
            0xc0 => state.output = Some(0x80), // input port: keyboard not locked
            0xd0 => state.output = Some(state.output_port),
            0x60 | 0xd1..=0xd4 => state.parameter_of = Some(command),
            // Pulse the lines of the output port whose bit is zero: bit 0 is the reset line.
            0xf0..=0xff if command & NOT_RESET == 0 => return RESET,
            _ => {}
        }
        None
    }

    fn data(&mut self, value: u8) -> Option<Effect> {
        let state = &mut self.state;
        state.last_was_command = false;
        match state.parameter_of.take() {
            Some(0x60) => state.config = value,
            Some(0xd1) => {
                // The processor must not stay in reset, so the line does not keep that level.
                state.output_port = value | NOT_RESET;
                if value & NOT_RESET == 0 {
                    return RESET;
                }
            }
            Some(0xd2) => state.output = Some(value),
            // Auxiliary loopback: an answer, but not the one that says there is a port.
            Some(0xd3) => state.output = Some(!value),
            _ => {} // for the keyboard or the mouse, if there was one
        }
        None
    }
}

const RESET: Option<Effect> = Some(Effect::Power(PowerEvent::Reset));

impl PortDevice for I8042 {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read_byte(&mut self, _now: VirtualTime, port: u16) -> u8 {
        match port {
            DATA => {
                if let Some(value) = self.state.output.take() {
                    self.state.last_output = value;
                }
                self.state.last_output
            }
            COMMAND => self.status(),
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, _now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
        match port {
            DATA => self.data(value),
            COMMAND => self.command(value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: VirtualTime = VirtualTime::ZERO;

    fn ask(kbc: &mut I8042, command: u8, parameter: Option<u8>) -> Option<u8> {
        assert_eq!(kbc.write(NOW, COMMAND, &[command]), None);
        if let Some(parameter) = parameter {
            assert_eq!(kbc.write(NOW, DATA, &[parameter]), None);
        }
        let mut byte = [0];
        kbc.read(NOW, COMMAND, &mut byte);
        assert_eq!(byte[0] & 0x02, 0, "input buffer full: Linux would wait");
        if byte[0] & OUTPUT_FULL == 0 {
            return None;
        }
        kbc.read(NOW, DATA, &mut byte);
        Some(byte[0])
    }

    #[test]
    fn resets() {
        for (command, resets) in [(0xfe, true), (0xf0, true), (0xff, false), (0xed, false)] {
            let effect = I8042::new().write(NOW, COMMAND, &[command]);
            assert_eq!(effect, if resets { RESET } else { None });
        }
        let mut kbc = I8042::new();
        assert_eq!(kbc.write(NOW, COMMAND, &[0xd1]), None);
        assert_eq!(kbc.write(NOW, DATA, &[0x02]), RESET);
        assert_eq!(kbc.write(NOW, DATA, &[0x02]), None);
    }

    #[test]
    fn linux_probe_needs_no_timeout() {
        // i8042_flush, i8042_controller_selftest, i8042_controller_init, i8042_check_aux.
        let mut kbc = I8042::new();
        let mut status = [0];
        kbc.read(NOW, COMMAND, &mut status);
        assert_eq!(status[0] & 0x03, 0);
        assert_eq!(ask(&mut kbc, 0xaa, None), Some(0x55));
        let config = ask(&mut kbc, 0x20, None).expect("configuration byte");
        assert_eq!(ask(&mut kbc, 0x60, Some(config & !1 | KEYBOARD_OFF)), None);
        assert_eq!(ask(&mut kbc, 0x20, None), Some(config & !1 | KEYBOARD_OFF));
        assert_ne!(ask(&mut kbc, 0xd3, Some(0x5a)), Some(0x5a));
        let aux = ask(&mut kbc, 0xa9, None).expect("answer to the auxiliary test");
        assert!(!matches!(aux, 0x00 | 0xfa | 0xff), "Linux would look for a mouse");
        assert_eq!(ask(&mut kbc, 0xae, None), None);
        let config = config & !KEYBOARD_OFF & !1;
        assert_eq!(ask(&mut kbc, 0x20, None), Some(config));
        // A new command forgets the one that waits for its parameter.
        assert_eq!(ask(&mut kbc, 0x60, None), None);
        assert_eq!(ask(&mut kbc, 0xae, Some(0xff)), None);
        assert_eq!(ask(&mut kbc, 0x20, None), Some(config));
    }

    proptest! {
        #[test]
        fn any_access_keeps_two_controllers_equal(
            accesses in prop::collection::vec((any::<bool>(), 0x5cu16..0x68, prop::collection::vec(any::<u8>(), 0..9)), 0..60)
        ) {
            let (mut one, mut other) = (I8042::new(), I8042::new());
            for (write, port, mut data) in accesses {
                if write {
                    prop_assert_eq!(one.write(NOW, port, &data), other.write(NOW, port, &data));
                } else {
                    let mut again = data.clone();
                    one.read(NOW, port, &mut data);
                    other.read(NOW, port, &mut again);
                    prop_assert_eq!(data, again);
                }
                prop_assert_eq!(&one, &other);
            }
        }
    }
}
