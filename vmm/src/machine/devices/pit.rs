//! The 8254 interval timer (Intel data sheet 231164) and the port 0x61 that goes with it.
//!
//! Three counters run at 1.193182 MHz. OUT0 is IRQ 0; counter 2 has its gate and its output at port 0x61
//! (and no speaker behind it). The counters count whole ticks of virtual time since power-on, so that
//! nothing drifts and the number of edges does not depend on how often anybody looks.

use super::{Effect, PortDevice};
use crate::machine::time::VirtualTime;
use counter::Counter;
use std::ops::RangeInclusive;

mod counter;

/// The frequency of the counters' clock in hertz.
pub const HERTZ: u64 = 1_193_182;

const PORTS: [RangeInclusive<u16>; 2] = [0x40..=0x43, 0x61..=0x61];

/// A memory refresh every 18 ticks, 15.085 µs: what counter 1 does on a PC. Its request toggles a bit of
/// port 0x61.
const REFRESH_TICKS: u64 = 18;

// Port 0x61.
const GATE2: u8 = 0x01;
const WRITABLE: u8 = 0x0f;
const REFRESH: u8 = 0x10;
const OUT2: u8 = 0x20;

/// The interval timer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pit {
    state: State,
}

/// The volatile state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    counters: [Counter; 3],
    /// The ticks since power-on that the counters have seen.
    ticks: u64,
    /// The low four bits of port 0x61: gate of counter 2, speaker, and the two parity-check bits.
    port61: u8,
}

/// What OUT0, the IRQ 0 line, did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out0 {
    /// How often it rose since the last call.
    pub rises: u64,
    /// Where it is now.
    pub level: bool,
}

impl Out0 {
    /// Drives an interrupt line through what happened. Rises that nobody saw one by one become one.
    pub fn drive(self, mut line: impl FnMut(bool)) {
        if self.rises > 0 {
            line(false);
            line(true);
        }
        line(self.level);
    }
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// A timer at power-on: nothing counts, OUT0 is high, the gate of counter 2 is low.
    #[must_use]
    pub fn new() -> Self {
        let counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        Self { state: State { counters, ticks: 0, port61: 0 } }
    }

    /// The volatile state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes over a state, from another machine's timer.
    pub fn restore(&mut self, state: State) {
        self.state = state;
    }

    /// Runs the counters up to `now` and tells what OUT0 did since the last call. A port access may move
    /// OUT0 too: call this after each.
    pub fn advance(&mut self, now: VirtualTime) -> Out0 {
        self.run(now);
        let [rises, ..] = self.state.counters.each_mut().map(Counter::take_rises);
        Out0 { rises, level: self.state.counters[0].out() }
    }

    /// When OUT0 will rise next; `None` if only the guest can make it. With a short count this is a
    /// microsecond away: a host limits how often it follows.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        let ticks = self.state.counters[0].ticks_to_rise()?;
        Some(VirtualTime::at_tick(self.state.ticks.saturating_add(ticks), HERTZ))
    }

    fn run(&mut self, now: VirtualTime) {
        let ticks = now.ticks_of(HERTZ);
        let passed = ticks.saturating_sub(self.state.ticks);
        for counter in &mut self.state.counters {
            counter.run(passed);
        }
        self.state.ticks += passed;
    }

    fn write_control(&mut self, value: u8) {
        let select = usize::from(value >> 6);
        let counters = &mut self.state.counters;
        match counters.get_mut(select) {
            Some(counter) if value & 0x30 == 0 => counter.latch_count(),
            Some(counter) => counter.write_control(value),
            None => {
                // Read-back: the count and status bits are active low.
                let chosen = counters.iter_mut().enumerate().filter(|(n, _)| value & (2 << n) != 0);
                for (_, counter) in chosen {
                    if value & 0x20 == 0 {
                        counter.latch_count();
                    }
                    if value & 0x10 == 0 {
                        counter.latch_status();
                    }
                }
            }
        }
    }

    fn read_port61(&self) -> u8 {
        let refresh = if (self.state.ticks / REFRESH_TICKS) & 1 == 1 { REFRESH } else { 0 };
        let out2 = if self.state.counters[2].out() { OUT2 } else { 0 };
        self.state.port61 | refresh | out2
    }
}

impl PortDevice for Pit {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read_byte(&mut self, now: VirtualTime, port: u16) -> u8 {
        self.run(now);
        match port {
            0x40..=0x42 => self.state.counters[usize::from(port - 0x40)].read(),
            0x61 => self.read_port61(),
            _ => 0xff, // the control word cannot be read
        }
    }

    fn write_byte(&mut self, now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
        self.run(now);
        match port {
            0x40..=0x42 => self.state.counters[usize::from(port - 0x40)].write(value),
            0x43 => self.write_control(value),
            0x61 => {
                self.state.port61 = value & WRITABLE;
                self.state.counters[2].set_gate(value & GATE2 != 0);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
