//! The data sheet's counter for the tests, one CLK pulse at a time.

pub(super) struct Model {
    mode: u8,
    pub(super) rw: u8,
    bcd: bool,
    cr: u16,
    ce: u32,
    pub(super) out: bool,
    gate: bool,
    load: bool,
    written: bool,
    running: bool,
    live: bool,
    odd_pulse: bool,
    low: Option<u8>,
    pub(super) rises: u64,
}

impl Model {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            rw: 3,
            bcd: false,
            cr: 0,
            ce: 0,
            out: true,
            gate,
            load: false,
            written: false,
            running: false,
            live: false,
            odd_pulse: false,
            low: None,
            rises: 0,
        }
    }

    fn limit(&self) -> u32 {
        if self.bcd { 10000 } else { 65536 }
    }

    fn set(&mut self, out: bool) {
        self.rises += u64::from(out && !self.out);
        self.out = out;
    }

    /// The initial count, with zero for the greatest.
    fn initial(&self) -> u32 {
        let count = if self.bcd {
            format!("{:x}", self.cr).parse().expect("decimal digits only")
        } else {
            u32::from(self.cr)
        };
        if count == 1 && matches!(self.mode, 2 | 3) { 2 } else { count }
    }

    fn down(&mut self, by: u32) {
        self.ce = (self.ce + self.limit() - by) % self.limit();
    }

    fn reload(&mut self) {
        let n = self.initial();
        self.ce = if self.mode == 3 { n & !1 } else { n };
        self.odd_pulse = self.mode == 3 && n % 2 == 1 && self.out;
    }

    pub(super) fn clock(&mut self) {
        if std::mem::take(&mut self.load) {
            match self.mode {
                0 => {}
                1 => self.set(false),
                _ => self.set(true),
            }
            self.reload();
            self.running = true;
            self.live = true;
            return;
        }
        if matches!(self.mode, 4 | 5) && self.running {
            self.set(true);
        }
        if !self.running || !self.gate && !matches!(self.mode, 1 | 5) {
            return;
        }
        match self.mode {
            2 => {
                self.down(1);
                match self.ce {
                    1 => self.set(false),
                    0 => {
                        self.set(true);
                        self.reload();
                    }
                    _ => {}
                }
            }
            3 => {
                if self.ce == 0 && self.odd_pulse && !self.live {
                    // the odd pulse after the count expired
                } else {
                    self.down(2);
                    self.live = false;
                    if self.ce != 0 || self.odd_pulse {
                        return;
                    }
                }
                let out = !self.out;
                self.set(out);
                self.reload();
                self.live = true;
            }
            _ => {
                self.down(1);
                if self.ce == 0 && std::mem::take(&mut self.live) {
                    self.set(self.mode < 2);
                }
            }
        }
    }

    pub(super) fn control(&mut self, v: u8) {
        let kept = (self.gate, self.out, self.rises);
        *self = Self::new(kept.0);
        (self.out, self.rises) = (kept.1, kept.2);
        self.mode = [0, 1, 2, 3, 4, 5, 2, 3][usize::from(v >> 1 & 7)];
        self.rw = v >> 4 & 3;
        self.bcd = v & 1 == 1;
        self.set(self.mode != 0);
    }

    pub(super) fn write(&mut self, v: u8) {
        match (self.rw, self.low.take()) {
            (1, _) => self.cr = u16::from(v),
            (2, _) => self.cr = u16::from(v) * 256,
            (_, Some(low)) => self.cr = u16::from(v) * 256 + u16::from(low),
            (_, None) => {
                self.low = Some(v);
                if self.mode == 0 {
                    self.running = false;
                    self.load = false;
                    self.set(false);
                }
                return;
            }
        }
        self.written = true;
        match self.mode {
            0 => {
                self.set(false);
                self.load = true;
            }
            4 => self.load = true,
            2 | 3 if !self.running => self.load = true,
            _ => {}
        }
    }

    pub(super) fn gate(&mut self, gate: bool) {
        let rising = gate && !self.gate;
        self.gate = gate;
        if matches!(self.mode, 1 | 5) && rising && self.written {
            self.load = true;
        }
        if matches!(self.mode, 2 | 3) {
            if rising && self.running {
                self.load = true;
            }
            if !gate {
                self.set(true);
            }
        }
    }

    pub(super) fn shows(&self) -> u16 {
        let ce = if self.load { self.initial() } else { self.ce };
        if self.bcd { u16::from_str_radix(&ce.to_string(), 16).expect("four digits") } else { ce as u16 }
    }
}
