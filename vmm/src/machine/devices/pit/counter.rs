//! One counter of the 8254.
//!
//! It runs by whole periods of CLK, as many at once as have passed: [`Counter::run`] costs the same for
//! one as for a million. Intel's terms: CR is the count register that the guest writes, CE the counting
//! element that decrements, OL the output latch.

/// What a counter does with its count: the M bits of the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    /// 0: OUT rises at the end of the count.
    TerminalCount,
    /// 1: a trigger makes OUT low for the length of the count.
    OneShot,
    /// 2: OUT is low for the last period of each count.
    RateGenerator,
    /// 3: OUT is high for one half of each count, low for the other.
    SquareWave,
    /// 4: OUT is low for one period after the end of the count.
    SoftwareStrobe,
    /// 5: the same, started by a trigger.
    HardwareStrobe,
}

impl Mode {
    /// Whether the count stands still while GATE is low. Otherwise a rising GATE triggers.
    fn gate_stops_count(self) -> bool {
        !matches!(self, Self::OneShot | Self::HardwareStrobe)
    }

    fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// Whether OUT is low from the start of a count to its end.
    fn is_low_while_counting(self) -> bool {
        matches!(self, Self::TerminalCount | Self::OneShot)
    }
}

/// Which bytes of the count the guest reads and writes: the RW bits of the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Access {
    Low,
    High,
    /// Low byte first, then high byte.
    Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// No count was written since the control word.
    Idle,
    /// A count was written; a trigger will load it.
    Armed,
    /// The next CLK loads CR into CE.
    Loading,
    /// Towards the end of the count.
    Counting,
    /// Past the end of the count: CE runs on and wraps, without effect. If OUT is still low (the
    /// strobe), it rises with the next CLK.
    Expired,
}

/// The volatile state of a counter, its inputs and its output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Counter {
    /// The low six bits of the control word, as written.
    control: u8,
    /// CR, as written: binary or four decimal digits.
    reload: u16,
    /// The count that CE was last loaded with, 1 to 65,536.
    loaded: u32,
    /// Periods of CLK to the end of the count; in mode 3, of the half in progress. Once expired: CE.
    left: u32,
    /// In mode 3: the half in progress has the odd period of an odd count.
    odd_half: bool,
    phase: Phase,
    /// CR was written and not yet loaded.
    null_count: bool,
    gate: bool,
    out: bool,
    /// How often OUT rose since it was last asked.
    rises: u64,

    latched_count: Option<u16>,
    latched_status: Option<u8>,
    low_byte: Option<u8>,
    read_high_next: bool,
}

impl Counter {
    /// A counter at power-on. The data sheet leaves its state open; here OUT is high and nothing counts.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            control: 0x30,
            reload: 0,
            loaded: 1,
            left: 0,
            odd_half: false,
            phase: Phase::Idle,
            null_count: true,
            gate,
            out: true,
            rises: 0,
            latched_count: None,
            latched_status: None,
            low_byte: None,
            read_high_next: false,
        }
    }

    pub(super) fn out(&self) -> bool {
        self.out
    }

    /// How often OUT rose since the last call.
    pub(super) fn take_rises(&mut self) -> u64 {
        std::mem::take(&mut self.rises)
    }

    /// Lets `ticks` periods of CLK pass.
    pub(super) fn run(&mut self, mut ticks: u64) {
        while ticks > 0 {
            match self.phase {
                Phase::Idle | Phase::Armed => break,
                Phase::Loading => {
                    ticks -= 1;
                    self.set_out(!self.mode().is_low_while_counting());
                    self.load();
                    self.phase = Phase::Counting;
                }
                Phase::Counting if self.is_stopped() => break,
                Phase::Counting => ticks = self.count(ticks),
                Phase::Expired => {
                    self.set_out(true);
                    if !self.is_stopped() {
                        let modulus = u64::from(self.modulus());
                        let passed = ticks % modulus;
                        self.left = ((u64::from(self.left) + modulus - passed) % modulus) as u32;
                    }
                    break;
                }
            }
        }
    }

    /// Counts down for `ticks` periods, or to the point where another phase begins; returns the rest.
    fn count(&mut self, ticks: u64) -> u64 {
        let mode = self.mode();
        let Some(rest) = ticks.checked_sub(self.left.into()) else {
            self.left -= ticks as u32;
            if mode == Mode::RateGenerator && self.left == 1 {
                self.set_out(false);
            }
            return 0;
        };
        match mode {
            Mode::TerminalCount | Mode::OneShot => self.set_out(true),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => self.set_out(false),
            Mode::RateGenerator => {
                self.set_out(false);
                self.set_out(true);
            }
            Mode::SquareWave => self.set_out(!self.out),
        }
        if !mode.is_periodic() {
            self.left = 0;
            self.phase = Phase::Expired;
            return rest;
        }
        // A whole number of counts from here changes nothing but how often OUT rose.
        self.load();
        let period = u64::from(self.loaded);
        self.rises = self.rises.saturating_add(rest / period);
        rest % period
    }

    /// Periods of CLK until OUT rises, if it will without anybody's doing.
    pub(super) fn ticks_to_rise(&self) -> Option<u64> {
        let mode = self.mode();
        let strobe = u64::from(matches!(mode, Mode::SoftwareStrobe | Mode::HardwareStrobe));
        match self.phase {
            Phase::Idle | Phase::Armed => None,
            Phase::Loading if !self.out && !mode.is_low_while_counting() => Some(1),
            Phase::Expired => (!self.out).then_some(1),
            _ if self.is_stopped() => None,
            Phase::Loading => Some(1 + u64::from(self.reload_value()) + strobe),
            Phase::Counting if mode == Mode::SquareWave && self.out => {
                Some(u64::from(self.left) + u64::from(self.reload_value() / 2))
            }
            Phase::Counting => Some(u64::from(self.left) + strobe),
        }
    }

    /// The guest writes a control word for this counter, not a latch command.
    pub(super) fn write_control(&mut self, control: u8) {
        *self = Self { control: control & 0x3f, out: self.out, rises: self.rises, ..Self::new(self.gate) };
        self.set_out(self.mode() != Mode::TerminalCount);
    }

    /// The guest writes a byte of the count.
    pub(super) fn write(&mut self, value: u8) {
        let count = match (self.access(), self.low_byte.take()) {
            (Access::Low, _) => value.into(),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Word, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Word, None) => {
                self.low_byte = Some(value);
                if self.mode() == Mode::TerminalCount {
                    // The first byte already ends the count in progress.
                    self.phase = Phase::Idle;
                    self.set_out(false);
                }
                return;
            }
        };
        self.reload = count;
        self.null_count = true;
        match self.mode() {
            Mode::TerminalCount => {
                self.phase = Phase::Loading;
                self.set_out(false);
            }
            Mode::SoftwareStrobe => self.phase = Phase::Loading,
            Mode::OneShot | Mode::HardwareStrobe if self.phase == Phase::Idle => self.phase = Phase::Armed,
            // The count, or half count, in progress ends first.
            Mode::RateGenerator | Mode::SquareWave if self.phase != Phase::Counting => {
                self.phase = Phase::Loading;
            }
            _ => {}
        }
    }

    /// The guest reads a byte: of the latched status, the latched count, or the count as it is.
    pub(super) fn read(&mut self) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.element()).to_le_bytes();
        let high_byte = match self.access() {
            Access::Low => false,
            Access::High => true,
            Access::Word => self.read_high_next,
        };
        self.read_high_next = self.access() == Access::Word && !high_byte;
        if !self.read_high_next {
            self.latched_count = None;
        }
        if high_byte { high } else { low }
    }

    /// Latches the count for reading, unless an earlier one is not read yet.
    pub(super) fn latch_count(&mut self) {
        self.latched_count = self.latched_count.or_else(|| Some(self.element()));
    }

    /// Latches the status for reading, unless an earlier one is not read yet.
    pub(super) fn latch_status(&mut self) {
        let status = u8::from(self.out) << 7 | u8::from(self.null_count) << 6 | self.control;
        self.latched_status = self.latched_status.or(Some(status));
    }

    /// Drives the GATE input.
    pub(super) fn set_gate(&mut self, gate: bool) {
        let trigger = gate && !self.gate;
        self.gate = gate;
        match self.mode() {
            Mode::OneShot | Mode::HardwareStrobe if trigger && self.phase != Phase::Idle => {
                self.phase = Phase::Loading;
            }
            Mode::RateGenerator | Mode::SquareWave if !gate => self.set_out(true),
            Mode::RateGenerator | Mode::SquareWave if trigger && self.phase == Phase::Counting => {
                self.phase = Phase::Loading;
            }
            _ => {}
        }
    }

    fn mode(&self) -> Mode {
        match self.control >> 1 & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            4 => Mode::SoftwareStrobe,
            5 => Mode::HardwareStrobe,
            _ => Mode::SquareWave,
        }
    }

    fn access(&self) -> Access {
        match self.control >> 4 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Word,
        }
    }

    fn is_decimal(&self) -> bool {
        self.control & 1 != 0
    }

    fn modulus(&self) -> u32 {
        if self.is_decimal() { 10_000 } else { 0x1_0000 }
    }

    fn is_stopped(&self) -> bool {
        !self.gate && self.mode().gate_stops_count()
    }

    fn set_out(&mut self, out: bool) {
        if out && !self.out {
            self.rises = self.rises.saturating_add(1);
        }
        self.out = out;
    }

    /// The count that CR stands for. Zero is the greatest count; 1, which the data sheet forbids in the
    /// periodic modes, is taken as 2 there.
    fn reload_value(&self) -> u32 {
        let count = if self.is_decimal() { from_decimal(self.reload) } else { self.reload.into() };
        match count % self.modulus() {
            0 => self.modulus(),
            1 if self.mode().is_periodic() => 2,
            count => count,
        }
    }

    /// Loads CE from CR.
    fn load(&mut self) {
        self.null_count = false;
        self.loaded = self.reload_value();
        if self.mode() == Mode::SquareWave {
            self.odd_half = self.out && self.loaded & 1 == 1;
            self.left = self.loaded / 2 + u32::from(self.odd_half);
        } else {
            self.left = self.loaded;
        }
    }

    /// CE as the guest reads it. A count about to be loaded shows already: a guest's clock may stand
    /// still between its write and its read, where a real one is too fast for the processor.
    fn element(&self) -> u16 {
        let count = match (self.phase, self.mode()) {
            (Phase::Loading, _) => self.reload_value(),
            // In mode 3 CE goes by twos; an odd count is rounded down, and stays at 0 for the odd period.
            (Phase::Counting, Mode::SquareWave) => 2 * (self.left - u32::from(self.odd_half)),
            _ => self.left,
        };
        let count = count % self.modulus();
        if self.is_decimal() { to_decimal(count) } else { count as u16 }
    }
}

fn from_decimal(digits: u16) -> u32 {
    [12, 8, 4, 0].iter().fold(0, |n, shift| n * 10 + u32::from(digits >> shift & 0xf))
}

fn to_decimal(count: u32) -> u16 {
    [1000, 100, 10, 1].iter().fold(0, |digits, unit| digits << 4 | (count / unit % 10) as u16)
}
