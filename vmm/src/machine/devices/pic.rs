//! The two 8259A interrupt controllers of a PC, as Intel's data sheet (231468) has them.
//!
//! The slave's INT pin is wired to IR2 of the master. An input in edge mode asks for service from its
//! rising edge until it is acknowledged or falls again, so a line that falls before the
//! acknowledge leads to the default interrupt, IR7, without a bit in service. The chipset's edge/level
//! registers (0x4d0, 0x4d1) replace ICW1's LTIM bit, which is ignored, as in Intel's south bridges. The
//! MCS-80 call sequence is not built: ICW4's µPM bit is taken as set.

use super::{Effect, PortDevice};
use crate::machine::time::VirtualTime;
use std::ops::RangeInclusive;

const PORTS: [RangeInclusive<u16>; 3] = [0x20..=0x21, 0xa0..=0xa1, 0x4d0..=0x4d1];

/// The master's input that the slave's INT pin drives.
const CASCADE: u8 = 2;
/// The level a chip reports when it is acknowledged and nothing asks for service.
const SPURIOUS: u8 = 7;
/// The inputs that ELCR can make level-sensitive. IRQ 0, 1, 2, 8 and 13 are always edge-triggered.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// The interrupt controller: sixteen lines in, one INTR pin out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pic {
    state: State,
}

/// The volatile state of both chips.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    master: Chip,
    slave: Chip,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Chip {
    // Inputs.
    lines: u8,
    /// Inputs that were low since they were last acknowledged: a high one asks for service in edge mode.
    armed: u8,

    // Registers.
    imr: u8,
    isr: u8,
    elcr: u8,

    // What ICW1 to ICW4 set.
    init: Init,
    single: bool,
    wants_icw4: bool,
    vector_base: u8,
    icw3: u8,
    auto_eoi: bool,
    special_fully_nested: bool,

    // What OCW2 and OCW3 set.
    /// The level with the lowest priority; the one after it has the highest.
    lowest: u8,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    poll: bool,
    read_isr: bool,
}

/// How far the sequence of initialisation command words has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Init {
    /// Nothing since power-on.
    None,
    AwaitsIcw2,
    AwaitsIcw3,
    AwaitsIcw4,
    Ready,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// A controller after power-on: it interrupts nobody until it is initialised.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State { master: Chip::new(), slave: Chip::new() } }
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

    /// Drives the interrupt line `irq` (0 to 15). IRQ 2 is the cascade: it and numbers past 15 are
    /// ignored.
    pub fn set_line(&mut self, irq: u8, level: bool) {
        let chip = match irq {
            CASCADE => return,
            0..8 => &mut self.state.master,
            8..16 => &mut self.state.slave,
            _ => return,
        };
        if chip.is_high(irq & 7) != level {
            chip.set_line(irq & 7, level);
            self.cascade();
        }
    }

    /// The INTR pin: whether an acknowledge would deliver an interrupt.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.state.master.serviceable().is_some()
    }

    /// The processor's INTA cycle: takes the interrupt of the highest priority in service and returns its
    /// vector. Without a request it is the spurious interrupt: IR7 of the chip asked.
    pub fn acknowledge(&mut self) -> u8 {
        let State { master, slave } = &mut self.state;
        match master.acknowledge() {
            Some(CASCADE) if master.has_slave() => {
                let level = slave.acknowledge().unwrap_or(SPURIOUS);
                let vector = slave.vector_base | level;
                self.cascade_after_acknowledge();
                vector
            }
            level => master.vector_base | level.unwrap_or(SPURIOUS),
        }
    }

    /// Carries the slave's INT pin to the master.
    fn cascade(&mut self) {
        let int = self.state.slave.serviceable().is_some();
        self.state.master.set_line(CASCADE, int);
    }

    /// The slave withdraws INT while it is acknowledged: a further request makes a new edge.
    fn cascade_after_acknowledge(&mut self) {
        self.state.master.set_line(CASCADE, false);
        self.cascade();
    }
}

impl PortDevice for Pic {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read_byte(&mut self, _now: VirtualTime, port: u16) -> u8 {
        let State { master, slave } = &mut self.state;
        let value = match port {
            0x20 | 0x21 => master.read(port & 1 != 0),
            0xa0 | 0xa1 => {
                let polled = slave.poll;
                let value = slave.read(port & 1 != 0);
                if polled {
                    self.cascade_after_acknowledge();
                }
                value
            }
            0x4d0 => master.elcr,
            0x4d1 => slave.elcr,
            _ => 0xff,
        };
        self.cascade();
        value
    }

    fn write_byte(&mut self, _now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
        let State { master, slave } = &mut self.state;
        match port {
            0x20 => master.write_command(value),
            0x21 => master.write_data(value),
            0xa0 => slave.write_command(value),
            0xa1 => slave.write_data(value),
            0x4d0 => master.elcr = value & ELCR_WRITABLE[0],
            0x4d1 => slave.elcr = value & ELCR_WRITABLE[1],
            _ => {}
        }
        self.cascade();
        None
    }
}

impl Chip {
    fn new() -> Self {
        Self {
            lines: 0,
            armed: 0xff,
            imr: 0,
            isr: 0,
            elcr: 0,
            init: Init::None,
            single: false,
            wants_icw4: false,
            vector_base: 0,
            icw3: 0,
            auto_eoi: false,
            special_fully_nested: false,
            lowest: 7,
            rotate_on_auto_eoi: false,
            special_mask: false,
            poll: false,
            read_isr: false,
        }
    }

    /// Drives input `level` (0 to 7).
    fn set_line(&mut self, level: u8, high: bool) {
        let bit = 1 << level;
        if high {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
            self.armed |= bit;
        }
    }

    fn is_high(&self, level: u8) -> bool {
        self.lines & 1 << level != 0
    }

    /// The interrupt request register: inputs that ask for service, masked or not.
    fn irr(&self) -> u8 {
        self.lines & (self.elcr | self.armed)
    }

    /// Whether a slave answers for the cascade input. A single chip is never given ICW3.
    fn has_slave(&self) -> bool {
        self.icw3 & (1 << CASCADE) != 0
    }

    /// The rank of a level, zero being the highest.
    fn rank(&self, level: u8) -> u8 {
        level.wrapping_sub(self.lowest + 1) & 7
    }

    /// The level with the highest priority among `levels`.
    fn highest(&self, levels: u8) -> Option<u8> {
        let first = (self.lowest + 1) & 7;
        let ranked = levels.rotate_right(first.into());
        (ranked != 0).then(|| (ranked.trailing_zeros() as u8 + first) & 7)
    }

    /// The levels in service that hold others back.
    fn in_service(&self) -> u8 {
        if self.special_mask { self.isr & !self.imr } else { self.isr }
    }

    /// The request that an acknowledge would serve now, if any: what drives the INT pin.
    fn serviceable(&self) -> Option<u8> {
        if self.init != Init::Ready {
            return None;
        }
        let asking = self.highest(self.irr() & !self.imr)?;
        let Some(served) = self.highest(self.in_service()) else { return Some(asking) };
        // In special fully nested mode a slave may interrupt its own interrupt.
        let nested = self.special_fully_nested && asking == served && asking == CASCADE && self.has_slave();
        (self.rank(asking) < self.rank(served) || nested).then_some(asking)
    }

    /// INTA: moves the request from IRR to ISR. `None` when nothing asks for service.
    fn acknowledge(&mut self) -> Option<u8> {
        let level = self.serviceable()?;
        self.armed &= !(1 << level);
        if !self.auto_eoi {
            self.isr |= 1 << level;
        } else if self.rotate_on_auto_eoi {
            self.lowest = level;
        }
        Some(level)
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return self.acknowledge().map_or(0, |level| 0x80 | level);
        }
        match (data_port, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr(),
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    fn write_data(&mut self, value: u8) {
        self.init = match self.init {
            Init::None | Init::Ready => {
                self.imr = value;
                return;
            }
            Init::AwaitsIcw2 => {
                self.vector_base = value & 0xf8;
                if self.single { self.after_icw3() } else { Init::AwaitsIcw3 }
            }
            Init::AwaitsIcw3 => {
                self.icw3 = value;
                self.after_icw3()
            }
            Init::AwaitsIcw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Init::Ready
            }
        };
    }

    fn after_icw3(&self) -> Init {
        if self.wants_icw4 { Init::AwaitsIcw4 } else { Init::Ready }
    }

    /// Starts initialisation: an input must now make a low-to-high transition to ask for service.
    fn icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            armed: !self.lines,
            elcr: self.elcr,
            vector_base: self.vector_base,
            init: Init::AwaitsIcw2,
            single: value & 0x02 != 0,
            wants_icw4: value & 0x01 != 0,
            ..Self::new()
        };
    }

    /// End of interrupt and rotation of priorities.
    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(level) = self.end_highest() {
                    self.lowest = level;
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            0b110 => self.lowest = level,
            _ => {} // 0b010 is no operation
        }
    }

    /// Non-specific EOI. In special mask mode it leaves masked levels in service.
    fn end_highest(&mut self) -> Option<u8> {
        let level = self.highest(self.in_service())?;
        self.isr &= !(1 << level);
        Some(level)
    }

    /// Special mask mode, poll command, choice of the register to read.
    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
