//! 16550A serial port COM1 (National Semiconductor PC16550D data sheet), IRQ 4.
//!
//! The line is infinitely fast: a byte is on its way when it is written, so the transmitter is always
//! empty. Received bytes wait in the FIFO, 16 deep, or one without FIFO; the rest stays with the
//! caller. Bytes below the FIFO's trigger level count as timed out at once.
//!
//! Not `vm-superio`'s `Serial`, which reports each interrupt as one event and forgets it: the level of
//! the IRQ line cannot be had from it, nor FIFO control, interrupt priorities, the gate by OUT2, or
//! a state that can be hashed.

use super::{Effect, PortDevice};
use crate::machine::time::VirtualTime;
use std::collections::VecDeque;
use std::ops::RangeInclusive;

const FIRST_PORT: u16 = 0x3f8;
const PORTS: [RangeInclusive<u16>; 1] = [FIRST_PORT..=FIRST_PORT + 7];

const FIFO_SIZE: usize = 16;

// Register offsets.
const DATA: u16 = 0; // receive buffer, transmit holding; divisor low with DLAB
const IER: u16 = 1; // interrupt enable; divisor high with DLAB
const IIR_FCR: u16 = 2; // interrupt identification, FIFO control
const LCR: u16 = 3; // line control
const MCR: u16 = 4; // modem control
const LSR: u16 = 5; // line status
const MSR: u16 = 6; // modem status
const SCR: u16 = 7; // scratch

// Interrupt enable register.
const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IER_LINE_STATUS: u8 = 0x04;
const IER_MODEM_STATUS: u8 = 0x08;
const IER_WRITABLE: u8 = 0x0f;

const IIR_FIFOS_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVER: u8 = 0x02;

const LCR_DLAB: u8 = 0x80;

// Modem control register.
const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const MCR_WRITABLE: u8 = 0x1f;

// Line status register.
const LSR_DATA_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

// Modem status register: four inputs, and in the low half which of them changed.
const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;
const MSR_RI_ENDED: u8 = 0x04;

/// The reason for an interrupt, as IIR tells it; the highest priority comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    LineStatus = 0x06,
    Received = 0x04,
    ReceivedTimeout = 0x0c,
    TransmitterEmpty = 0x02,
    ModemStatus = 0x00,
    None = 0x01,
}

/// The serial port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serial {
    state: State,
}

/// The volatile state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    ier: u8,
    /// FIFO control register, without the bits that only command.
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    received: VecDeque<u8>,
    overrun: bool,
    /// The transmitter became empty, and IIR has not told so yet.
    transmitter_empty: bool,
    /// The low half of MSR: inputs that changed since it was read.
    modem_changes: u8,
}

impl Default for Serial {
    fn default() -> Self {
        Self::new()
    }
}

impl Serial {
    /// A port after reset, set to 9,600 baud, with a terminal at the other end of the line.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State {
                ier: 0,
                fcr: 0,
                lcr: 0,
                mcr: 0,
                scr: 0,
                divisor: [12, 0],
                received: VecDeque::with_capacity(FIFO_SIZE),
                overrun: false,
                transmitter_empty: false,
                modem_changes: 0,
            },
        }
    }

    /// The volatile state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes over a state, from another machine's port.
    pub fn restore(&mut self, state: State) {
        self.state = state;
    }

    /// How many bytes the receiver can take now. In loopback mode it does not listen to the line: zero.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.is_loopback() { 0 } else { self.capacity().saturating_sub(self.state.received.len()) }
    }

    /// Bytes arrive on the line. Returns how many from the front were taken, at most [`room`](Self::room);
    /// the caller keeps the others for later.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.state.received.extend(&bytes[..taken]);
        taken
    }

    /// The level of the interrupt line. OUT2 gates it on a PC, and is inactive in loopback mode.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.cause() != Cause::None && self.state.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
    }

    fn cause(&self) -> Cause {
        let state = &self.state;
        let enabled = |bit| state.ier & bit != 0;
        if enabled(IER_LINE_STATUS) && state.overrun {
            Cause::LineStatus
        } else if enabled(IER_RECEIVED) && !state.received.is_empty() {
            if state.received.len() >= self.trigger_level() {
                Cause::Received
            } else {
                Cause::ReceivedTimeout
            }
        } else if enabled(IER_TRANSMITTER_EMPTY) && state.transmitter_empty {
            Cause::TransmitterEmpty
        } else if enabled(IER_MODEM_STATUS) && state.modem_changes != 0 {
            Cause::ModemStatus
        } else {
            Cause::None
        }
    }

    fn has_fifos(&self) -> bool {
        self.state.fcr & FCR_ENABLE != 0
    }

    fn is_loopback(&self) -> bool {
        self.state.mcr & MCR_LOOP != 0
    }

    fn capacity(&self) -> usize {
        if self.has_fifos() { FIFO_SIZE } else { 1 }
    }

    /// How many received bytes make an interrupt by themselves.
    fn trigger_level(&self) -> usize {
        if self.has_fifos() { [1, 4, 8, 14][usize::from(self.state.fcr >> 6)] } else { 1 }
    }

    /// The four inputs from the modem: in loopback mode the port's own outputs, else a terminal that is
    /// always there.
    fn modem_inputs(&self) -> u8 {
        if !self.is_loopback() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)]
            .iter()
            .filter(|(output, _)| self.state.mcr & output != 0)
            .fold(0, |inputs, (_, input)| inputs | input)
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.state.mcr = value & MCR_WRITABLE;
        let after = self.modem_inputs();
        let mut changes = (before ^ after) >> 4;
        if after & MSR_RI != 0 {
            changes &= !MSR_RI_ENDED; // of the ring indicator only the trailing edge counts
        }
        self.state.modem_changes |= changes;
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.state.fcr) & FCR_ENABLE != 0;
        if toggled || value & (FCR_ENABLE | FCR_CLEAR_RECEIVER) == FCR_ENABLE | FCR_CLEAR_RECEIVER {
            self.state.received.clear();
        }
        // The trigger level can be programmed only along with the enable bit.
        self.state.fcr = if value & FCR_ENABLE != 0 { value & 0xc1 } else { 0 };
    }

    fn write_ier(&mut self, value: u8) {
        let enabled = value & !self.state.ier;
        self.state.ier = value & IER_WRITABLE;
        // The transmitter is empty: enabling its interrupt asks for one.
        self.state.transmitter_empty |= enabled & IER_TRANSMITTER_EMPTY != 0;
    }

    fn transmit(&mut self, byte: u8) -> Option<Effect> {
        self.state.transmitter_empty = true;
        if !self.is_loopback() {
            return Some(Effect::Serial(byte));
        }
        if self.state.received.len() < self.capacity() {
            self.state.received.push_back(byte);
        } else {
            self.state.overrun = true;
            if !self.has_fifos() {
                self.state.received[0] = byte; // the new byte replaces the one not read
            }
        }
        None
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == Cause::TransmitterEmpty {
            self.state.transmitter_empty = false;
        }
        cause as u8 | if self.has_fifos() { IIR_FIFOS_ENABLED } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let ready = if self.state.received.is_empty() { 0 } else { LSR_DATA_READY };
        let overrun = if std::mem::take(&mut self.state.overrun) { LSR_OVERRUN } else { 0 };
        LSR_TRANSMITTER_EMPTY | ready | overrun
    }
}

impl PortDevice for Serial {
    fn ports(&self) -> &'static [RangeInclusive<u16>] {
        const { &PORTS }
    }

    fn read_byte(&mut self, _now: VirtualTime, port: u16) -> u8 {
        let dlab = self.state.lcr & LCR_DLAB != 0;
        match port.wrapping_sub(FIRST_PORT) {
            offset @ (DATA | IER) if dlab => self.state.divisor[usize::from(offset)],
            DATA => self.state.received.pop_front().unwrap_or(0),
            IER => self.state.ier,
            IIR_FCR => self.read_iir(),
            LCR => self.state.lcr,
            MCR => self.state.mcr,
            LSR => self.read_lsr(),
            MSR => self.modem_inputs() | std::mem::take(&mut self.state.modem_changes),
            SCR => self.state.scr,
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, _now: VirtualTime, port: u16, value: u8) -> Option<Effect> {
        let dlab = self.state.lcr & LCR_DLAB != 0;
        match port.wrapping_sub(FIRST_PORT) {
            offset @ (DATA | IER) if dlab => self.state.divisor[usize::from(offset)] = value,
            DATA => return self.transmit(value),
            IER => self.write_ier(value),
            IIR_FCR => self.write_fcr(value),
            LCR => self.state.lcr = value,
            MCR => self.write_mcr(value),
            SCR => self.state.scr = value,
            _ => {} // the status registers are for reading
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: VirtualTime = VirtualTime::ZERO;

    fn out(serial: &mut Serial, offset: u16, value: u8) {
        assert_eq!(serial.write(NOW, FIRST_PORT + offset, &[value]), None);
    }

    fn inb(serial: &mut Serial, offset: u16) -> u8 {
        let mut data = [0];
        serial.read(NOW, FIRST_PORT + offset, &mut data);
        data[0]
    }

    /// FIFOs on with a trigger level of 14, interrupts let through.
    fn opened(ier: u8) -> Serial {
        let mut serial = Serial::new();
        out(&mut serial, IIR_FCR, 0xc7);
        out(&mut serial, MCR, MCR_DTR | MCR_RTS | MCR_OUT2);
        out(&mut serial, IER, ier);
        serial
    }

    #[test]
    fn linux_finds_a_16550a() {
        // autoconfig() and autoconfig_16550a() of drivers/tty/serial/8250/8250_port.c.
        let mut serial = Serial::new();
        out(&mut serial, IER, 0);
        assert_eq!(inb(&mut serial, IER) & 0x0f, 0);
        out(&mut serial, IER, 0x0f);
        assert_eq!(inb(&mut serial, IER) & 0x0f, 0x0f);
        out(&mut serial, IER, 0);
        out(&mut serial, MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS);
        assert_eq!(inb(&mut serial, MSR) & 0xf0, MSR_DCD | MSR_CTS);
        out(&mut serial, MCR, 0);
        out(&mut serial, LCR, 0xbf);
        out(&mut serial, IIR_FCR, 0);
        out(&mut serial, LCR, 0);
        out(&mut serial, IIR_FCR, FCR_ENABLE);
        assert_eq!(inb(&mut serial, IIR_FCR) >> 6, 3);
        for conf in [0x80, 0xbf, 0xe0] {
            out(&mut serial, LCR, conf);
            assert_ne!(inb(&mut serial, IIR_FCR), 0, "no EFR, no bank 2");
        }
        out(&mut serial, LCR, 0);
        out(&mut serial, IER, 0x40);
        assert_eq!(inb(&mut serial, IER) & 0x40, 0, "no XScale");
        for scratch in [0xa5, 0x5a] {
            out(&mut serial, SCR, scratch);
            assert_eq!(inb(&mut serial, SCR), scratch);
        }
    }

    #[test]
    fn transmits_at_once_and_interrupts_until_iir_is_read() {
        let mut serial = opened(0);
        assert_eq!(serial.write(NOW, FIRST_PORT, b"A"), Some(Effect::Serial(b'A')));
        assert!(!serial.interrupt());
        // serial8250_THRE_test: each time the interrupt is enabled it comes.
        for _ in 0..2 {
            out(&mut serial, IER, IER_TRANSMITTER_EMPTY);
            assert!(serial.interrupt());
            assert_eq!(inb(&mut serial, IIR_FCR), 0xc2);
            assert!(!serial.interrupt());
            assert_eq!(inb(&mut serial, IIR_FCR), 0xc1);
            out(&mut serial, IER, 0);
        }
        out(&mut serial, IER, IER_TRANSMITTER_EMPTY);
        inb(&mut serial, IIR_FCR);
        assert_eq!(serial.write(NOW, FIRST_PORT, b"B"), Some(Effect::Serial(b'B')));
        assert!(serial.interrupt());
        assert_eq!(inb(&mut serial, LSR), 0x60);
    }

    #[test]
    fn receives_by_fifo_with_trigger_level() {
        let mut serial = opened(IER_RECEIVED);
        assert_eq!(serial.enqueue(b"0123456789abc"), 13);
        assert_eq!(inb(&mut serial, IIR_FCR), 0xcc);
        assert!(serial.interrupt());
        assert_eq!(serial.enqueue(b"defgh"), 3);
        assert_eq!(serial.room(), 0);
        assert_eq!(inb(&mut serial, IIR_FCR), 0xc4);
        let mut text = vec![];
        while inb(&mut serial, LSR) & LSR_DATA_READY != 0 {
            assert!(serial.interrupt());
            text.push(inb(&mut serial, DATA));
        }
        assert_eq!(text, b"0123456789abcdef");
        assert!(!serial.interrupt());
        assert_eq!(inb(&mut serial, DATA), 0);
    }

    #[test]
    fn without_fifos_one_byte_at_a_time() {
        let mut serial = opened(IER_RECEIVED);
        serial.enqueue(b"lost");
        out(&mut serial, IIR_FCR, 0);
        assert!(!serial.interrupt(), "turning the FIFOs off empties them");
        assert_eq!(serial.enqueue(b"ab"), 1);
        assert_eq!(inb(&mut serial, IIR_FCR), 0x04);
        assert_eq!(serial.enqueue(b"b"), 0);
        assert_eq!(inb(&mut serial, DATA), b'a');
        out(&mut serial, MCR, MCR_LOOP);
        out(&mut serial, DATA, b'c');
        out(&mut serial, DATA, b'd');
        assert_eq!(inb(&mut serial, LSR), 0x63);
        assert_eq!(inb(&mut serial, DATA), b'd', "the byte not read is overwritten");
        assert_eq!(inb(&mut serial, LSR), 0x60);
    }

    #[test]
    fn loopback_returns_what_is_sent() {
        let mut serial = opened(IER_LINE_STATUS);
        out(&mut serial, MCR, MCR_LOOP | MCR_OUT2);
        assert_eq!(serial.enqueue(b"x"), 0);
        for byte in 0..17 {
            out(&mut serial, DATA, byte);
        }
        assert!(!serial.interrupt(), "OUT2 is inactive in loopback");
        assert_eq!(inb(&mut serial, IIR_FCR), 0xc6);
        assert_eq!(inb(&mut serial, LSR), 0x63);
        assert_eq!(inb(&mut serial, LSR), 0x61);
        assert_eq!(inb(&mut serial, IIR_FCR), 0xc1);
        for byte in 0..16 {
            assert_eq!(inb(&mut serial, DATA), byte);
        }
    }

    #[test]
    fn modem_changes_interrupt_last() {
        let mut serial = opened(IER_MODEM_STATUS | IER_TRANSMITTER_EMPTY);
        out(&mut serial, MCR, MCR_LOOP | MCR_OUT2);
        assert_eq!(inb(&mut serial, MSR), 0x83, "CTS and DSR went");
        out(&mut serial, MCR, MCR_LOOP | MCR_OUT1 | MCR_OUT2);
        assert_eq!(inb(&mut serial, MSR), 0xc0, "that it begins to ring is no event");
        out(&mut serial, MCR, MCR_OUT2);
        assert_eq!(inb(&mut serial, IIR_FCR), 0xc2);
        assert!(serial.interrupt());
        assert_eq!(inb(&mut serial, IIR_FCR), 0xc0);
        // CTS and DSR came back, the ringing ended.
        assert_eq!(inb(&mut serial, MSR), 0xb7);
        assert_eq!(inb(&mut serial, MSR), 0xb0);
        assert!(!serial.interrupt());
    }

    #[test]
    fn out2_gates_the_line() {
        let mut serial = opened(IER_RECEIVED);
        serial.enqueue(b"x");
        out(&mut serial, MCR, MCR_DTR | MCR_RTS);
        assert!(!serial.interrupt());
        assert_ne!(inb(&mut serial, IIR_FCR) & 1, 1);
        out(&mut serial, MCR, MCR_OUT2);
        assert!(serial.interrupt());
    }

    #[test]
    fn divisor_latch() {
        let mut serial = Serial::new();
        out(&mut serial, LCR, LCR_DLAB | 3);
        assert_eq!([inb(&mut serial, DATA), inb(&mut serial, IER)], [12, 0]);
        assert_eq!(serial.write(NOW, FIRST_PORT, &[1, 2]), None);
        out(&mut serial, LCR, 3);
        assert_eq!(inb(&mut serial, IER), 0);
        out(&mut serial, LCR, LCR_DLAB | 3);
        assert_eq!([inb(&mut serial, DATA), inb(&mut serial, IER)], [1, 2]);
    }

    proptest! {
        #[test]
        fn any_access_keeps_two_ports_equal_and_the_interrupt_true(
            accesses in prop::collection::vec((0u8..3, 0u16..10, prop::collection::vec(any::<u8>(), 0..9)), 0..80)
        ) {
            let (mut one, mut other) = (Serial::new(), Serial::new());
            for (kind, offset, mut data) in accesses {
                let port = FIRST_PORT - 1 + offset;
                match kind {
                    0 => prop_assert_eq!(one.write(NOW, port, &data), other.write(NOW, port, &data)),
                    1 => prop_assert_eq!(one.enqueue(&data), other.enqueue(&data)),
                    _ => {
                        let mut again = data.clone();
                        one.read(NOW, port, &mut data);
                        other.read(NOW, port, &mut again);
                        prop_assert_eq!(data, again);
                    }
                }
                prop_assert_eq!(&one, &other);
                prop_assert!(one.state.received.len() <= FIFO_SIZE);
                let mut probe = one.clone();
                let pending = inb(&mut probe, IIR_FCR) & 1 == 0;
                let gate = inb(&mut probe, MCR) & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
                prop_assert_eq!(one.interrupt(), pending && gate);
            }
        }
    }
}
