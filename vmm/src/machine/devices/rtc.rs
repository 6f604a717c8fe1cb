//! Real-time clock and CMOS memory: Motorola MC146818 (data sheet MC146818A) at ports 0x70 and 0x71, IRQ 8.
//!
//! The time of day is a wall-clock second, given once at power-on, plus virtual time. While the guest sets
//! the clock (SET, or the divider in reset) the time registers hold what it writes; then
//! they are taken over, each out-of-range value as the nearest valid one. The update of the
//! registers takes no time; UIP warns of it 244 µs before. Daylight saving and the square wave are not
//! built; bit 7 of port 0x70, the NMI mask, is ignored.

use super::{Effect, PortDevice};
use crate::machine::time::{NANOS_PER_SECOND, VirtualTime};
use calendar::{DAY, Date, days_in_month, weekday};
use std::ops::RangeInclusive;

mod calendar;

const PORTS: [RangeInclusive<u16>; 1] = [0x70..=0x71];

// Registers.
const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY_OF_MONTH: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const A: usize = 0x0a;
const B: usize = 0x0b;
const C: usize = 0x0c;
const D: usize = 0x0d;
const CENTURY: usize = 0x32;
/// Where IBM's PS/2 has the century: the same register here.
const CENTURY_PS2: usize = 0x37;

// Register A.
const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const A_DIVIDER_RESET: u8 = 0x60;
const A_RATE: u8 = 0x0f;
const A_POWER_ON: u8 = 0x26;

// Register B. The three interrupt enable bits stand where register C has their flags.
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;

// Register C.
const C_REQUEST: u8 = 0x80;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE_ENDED: u8 = 0x10;
const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE_ENDED;

const D_VALID: u8 = 0x80;

const PM: u8 = 0x80;
/// Alarm values from here on match any time.
const ALARM_ANY: u8 = 0xc0;

/// The divider's input in hertz.
const CRYSTAL: u64 = 32_768;
/// UIP rises this long before an update, in nanoseconds: eight periods of the crystal.
const UPDATE_WARNING: u64 = 8 * NANOS_PER_SECOND / CRYSTAL;
/// The first update comes this long after the divider's reset ends, in nanoseconds.
const FIRST_UPDATE: u64 = NANOS_PER_SECOND / 2;

/// The last second of the year 9999, in Unix time.
const LAST_SECOND: u64 = 253_402_300_799;

/// The clock and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rtc {
    state: State,
}

/// The volatile state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The register that port 0x71 shows.
    index: u8,
    /// Alarm registers and memory; the time registers too, while the clock is stopped.
    memory: [u8; 128],
    control_a: u8,
    control_b: u8,
    /// The three flags of register C.
    flags: u8,
    divider: Divider,
    /// Unix time at the divider's second zero, while the clock runs.
    epoch: i64,
    /// How far the weekday register is ahead of the calendar, 0 to 6: to the chip it is just a number.
    weekday_ahead: u8,
    /// Virtual time up to which flags were set.
    seen: VirtualTime,
}

/// The chain of dividers from the crystal down to seconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Divider {
    start: VirtualTime,
    /// What it stood at then, in nanoseconds.
    lead: u64,
}

impl Divider {
    /// Nanoseconds counted.
    fn nanos(&self, now: VirtualTime) -> u64 {
        now.since(self.start).saturating_add(self.lead)
    }

    /// Whole seconds counted.
    fn seconds(&self, now: VirtualTime) -> i64 {
        (self.nanos(now) / NANOS_PER_SECOND) as i64
    }

    /// Whole periods of the crystal counted.
    fn ticks(&self, now: VirtualTime) -> u64 {
        VirtualTime::from_nanos(self.nanos(now)).ticks_of(CRYSTAL)
    }

    /// When `ticks` periods of the crystal will have been counted.
    fn at_tick(&self, ticks: u64) -> VirtualTime {
        self.start + VirtualTime::at_tick(ticks, CRYSTAL).as_nanos().saturating_sub(self.lead)
    }
}

/// How much memory the CMOS tells of, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize {
    /// From address zero up to the hole below 4 GiB.
    pub below_4g: u64,
    /// From 4 GiB up.
    pub above_4g: u64,
}

impl Rtc {
    /// A clock that shows `boot_unix_seconds` (UTC, up to the year 9999, later ones are taken as that) at
    /// power-on, in decimal digits and 24 hours, with no interrupt enabled.
    #[must_use]
    pub fn new(boot_unix_seconds: u64, memory: MemorySize) -> Self {
        Self {
            state: State {
                index: 0,
                memory: initial_memory(memory),
                control_a: A_POWER_ON,
                control_b: B_24_HOURS,
                flags: 0,
                divider: Divider { start: VirtualTime::ZERO, lead: 0 },
                epoch: boot_unix_seconds.min(LAST_SECOND) as i64,
                weekday_ahead: 0,
                seen: VirtualTime::ZERO,
            },
        }
    }

    /// The volatile state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes over a state, from another machine's clock.
    pub fn restore(&mut self, state: State) {
        self.state = state;
    }

    /// Sets the flags of what happened up to `now`.
    pub fn advance(&mut self, now: VirtualTime) {
        let seen = self.state.seen;
        if now <= seen {
            return;
        }
        self.state.seen = now;
        let divider = &self.state.divider;
        if self.is_divider_reset() {
            return;
        }
        let mut flags = 0;
        if let Some(period) = self.periodic_ticks()
            && divider.ticks(now) / period > divider.ticks(seen) / period
        {
            flags |= PERIODIC;
        }
        if !self.is_stopped() && divider.seconds(now) > divider.seconds(seen) {
            flags |= UPDATE_ENDED;
            if self.next_alarm(seen).is_some_and(|alarm| alarm <= self.unix_time(now)) {
                flags |= ALARM;
            }
        }
        self.state.flags |= flags;
    }

    /// When the interrupt line will rise next; `None` if it is up, or if only the guest can make it.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        let State { divider, seen, control_b, .. } = &self.state;
        if self.interrupt() || self.is_divider_reset() {
            return None;
        }
        let enabled = |interrupt| control_b & interrupt != 0;
        let periodic = self
            .periodic_ticks()
            .filter(|_| enabled(PERIODIC))
            .map(|period| (divider.ticks(*seen) / period + 1) * period);
        let second = if self.is_stopped() {
            None
        } else if enabled(UPDATE_ENDED) {
            Some(divider.seconds(*seen) + 1)
        } else if enabled(ALARM) {
            self.next_alarm(*seen).map(|alarm| alarm - self.state.epoch)
        } else {
            None
        };
        let ticks = [periodic, second.map(|second| second as u64 * CRYSTAL)].into_iter().flatten().min()?;
        Some(divider.at_tick(ticks))
    }

    /// The level of the interrupt line. Reading register C lowers it.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.state.flags & self.state.control_b & INTERRUPTS != 0
    }

    fn is_divider_reset(&self) -> bool {
        self.state.control_a & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// Whether the time registers stand still: the guest is setting them.
    fn is_stopped(&self) -> bool {
        self.state.control_b & B_SET != 0 || self.is_divider_reset()
    }

    /// The period of the periodic interrupt in periods of the crystal.
    fn periodic_ticks(&self) -> Option<u64> {
        match self.state.control_a & A_RATE {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)), // these two repeat 8 and 9
            rate => Some(1 << (rate - 1)),
        }
    }

    fn unix_time(&self, now: VirtualTime) -> i64 {
        self.state.epoch + self.state.divider.seconds(now)
    }

    /// The first second after `now` that matches the alarm registers, in Unix time.
    fn next_alarm(&self, now: VirtualTime) -> Option<i64> {
        let matches = |register: usize, value: u8| {
            let alarm = self.state.memory[register];
            let shown = if register == HOURS_ALARM { self.encode_hour(value) } else { self.encode(value) };
            alarm >= ALARM_ANY || alarm == shown
        };
        let first = self.unix_time(now) + 1;
        let midnight = first - first.rem_euclid(DAY);
        for hour in (0..48).filter(|hour| matches(HOURS_ALARM, (hour % 24) as u8)) {
            for minute in (0..60).filter(|minute| matches(MINUTES_ALARM, *minute as u8)) {
                let start = midnight + hour * 3600 + minute * 60;
                if start + 59 < first {
                    continue;
                }
                let mut seconds = (0..60).filter(|second| matches(SECONDS_ALARM, *second as u8));
                if let Some(second) = seconds.find(|second| start + second >= first) {
                    return Some(start + second);
                }
            }
        }
        None
    }

    /// A number as the data mode has it: binary, or two decimal digits.
    fn encode(&self, value: u8) -> u8 {
        if self.state.control_b & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.state.control_b & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0x0f) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.state.control_b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.state.control_b & B_24_HOURS != 0 {
            return self.decode(value).min(23);
        }
        let hour = self.decode(value & !PM).clamp(1, 12) % 12;
        if value & PM != 0 { hour + 12 } else { hour }
    }

    /// Writes the time of day at `now` into the time registers.
    fn store_time(&mut self, now: VirtualTime) {
        let time = self.unix_time(now);
        let days = time.div_euclid(DAY);
        let second = time.rem_euclid(DAY);
        let date = Date::from_days(days);
        let weekday = (weekday(days) - 1 + self.state.weekday_ahead) % 7 + 1;
        let registers = [
            (SECONDS, self.encode((second % 60) as u8)),
            (MINUTES, self.encode((second / 60 % 60) as u8)),
            (HOURS, self.encode_hour((second / 3600) as u8)),
            (WEEKDAY, self.encode(weekday)),
            (DAY_OF_MONTH, self.encode(date.day)),
            (MONTH, self.encode(date.month)),
            (YEAR, self.encode(date.year.rem_euclid(100) as u8)),
            (CENTURY, self.encode(date.year.div_euclid(100).rem_euclid(100) as u8)),
        ];
        for (register, value) in registers {
            self.state.memory[register] = value;
        }
    }

    /// Lets the clock go on at `now` from what the time registers hold.
    fn load_time(&mut self, now: VirtualTime) {
        let register = |register: usize| self.decode(self.state.memory[register]);
        let year = i64::from(register(CENTURY).min(99)) * 100 + i64::from(register(YEAR).min(99));
        let month = register(MONTH).clamp(1, 12);
        let day = register(DAY_OF_MONTH).clamp(1, days_in_month(year, month));
        let days = Date { year, month, day }.to_days();
        let hour = i64::from(self.decode_hour(self.state.memory[HOURS]));
        let minute = i64::from(register(MINUTES).min(59));
        let second = i64::from(register(SECONDS).min(59));
        let shown_weekday = register(WEEKDAY).clamp(1, 7);
        self.state.weekday_ahead = (shown_weekday + 7 - weekday(days)) % 7;
        let time = days * DAY + hour * 3600 + minute * 60 + second;
        self.state.epoch = time - self.state.divider.seconds(now);
    }

    /// Changes register A or B, and with them whether the clock runs.
    fn write_control(&mut self, now: VirtualTime, a: u8, b: u8) {
        let was_stopped = self.is_stopped();
        let was_reset = self.is_divider_reset();
        if !was_stopped {
            self.store_time(now);
        }
        self.state.control_a = a & !A_UPDATE_IN_PROGRESS;
        // SET takes the update-ended interrupt away.
        self.state.control_b = if b & B_SET != 0 { b & !UPDATE_ENDED } else { b };
        if was_reset && !self.is_divider_reset() {
            self.state.divider = Divider { start: now, lead: FIRST_UPDATE };
        }
        if was_stopped && !self.is_stopped() {
            self.load_time(now);
        }
    }

    fn read_a(&self, now: VirtualTime) -> u8 {
        let to_update = NANOS_PER_SECOND - self.state.divider.nanos(now) % NANOS_PER_SECOND;
        let updating = !self.is_stopped() && to_update <= UPDATE_WARNING;
        self.state.control_a | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
    }

    fn read_c(&mut self) -> u8 {
        let request = if self.interrupt() { C_REQUEST } else { 0 };
        request | std::mem::take(&mut self.state.flags)
    }

    /// The register that the index chooses.
    fn register(&self) -> usize {
        match usize::from(self.state.index) {
            CENTURY_PS2 => CENTURY,
            register => register,
        }
    }

    fn read_register(&mut self, now: VirtualTime, register: usize) -> u8 {
        match register {
            A => self.read_a(now),
            B => self.state.control_b,
            C => self.read_c(),
            D => D_VALID,
            _ => {
                if is_time(register) && !self.is_stopped() {
                    self.store_time(now);
                }
                self.state.memory[register]
            }
        }
    }

    fn write_register(&mut self, now: VirtualTime, register: usize, value: u8) {
        match register {
            A => self.write_control(now, value, self.state.control_b),
            B => self.write_control(now, self.state.control_a, value),
            C | D => {}
            _ if is_time(register) && !self.is_stopped() => {
                self.store_time(now);
                self.state.memory[register] = value;
                self.load_time(now);
            }
            _ => self.state.memory[register] = value,
        }
    }
}

/// Whether a register shows the time of day.
fn is_time(register: usize) -> bool {
    matches!(register, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY)
}

/// What a PC's firmware leaves in the memory.
fn initial_memory(size: MemorySize) -> [u8; 128] {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const BASE_KIB: u16 = 640;
    let units = |bytes: u64, unit: u64, most: u64| (bytes / unit).min(most);
    let above_1m = units(size.below_4g.saturating_sub(MIB), KIB, 0xffff) as u16;
    let above_16m = units(size.below_4g.saturating_sub(16 * MIB), 64 * KIB, 0xffff) as u16;
    let above_4g = units(size.above_4g, 64 * KIB, 0xff_ffff) as u32;

    let mut memory = [0; 128];
    memory[0x14] = 0x02; // equipment: a mathematics coprocessor
    memory[0x15..0x17].copy_from_slice(&BASE_KIB.to_le_bytes());
    memory[0x17..0x19].copy_from_slice(&above_1m.to_le_bytes());
    memory[0x30..0x32].copy_from_slice(&above_1m.to_le_bytes());
    memory[0x34..0x36].copy_from_slice(&above_16m.to_le_bytes());
    memory[0x5b..0x5e].copy_from_slice(&above_4g.to_le_bytes()[..3]);
    let checksum: u16 = memory[0x10..0x2e].iter().map(|&byte| u16::from(byte)).sum();
    memory[0x2e..0x30].copy_from_slice(&checksum.to_be_bytes());
    memory
}

impl PortDevice for Rtc {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read_byte(&mut self, now: VirtualTime, port: u16) -> u8 {
        self.advance(now);
        match port {
            0x71 => self.read_register(now.max(self.state.seen), self.register()),
            _ => 0xff, // the index cannot be read
        }
    }

    fn write_byte(&mut self, now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
        self.advance(now);
        match port {
            0x70 => self.state.index = value & 0x7f,
            0x71 => self.write_register(now.max(self.state.seen), self.register(), value),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;
