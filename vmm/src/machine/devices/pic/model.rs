//! The same chips, told differently, for the tests: one record per input, priorities as a list, all decided
//! by search.

#[derive(Clone, Copy, Default)]
pub(super) struct Input {
    line: bool,
    latched: bool, // a rising edge was seen, and neither acknowledge nor fall since
    level: bool,
    masked: bool,
    served: bool,
}

pub(super) struct Chip {
    inputs: [Input; 8],
    order: Vec<usize>, // highest priority first
    words: u8,         // initialisation words still to come, with 0xff for never begun
    icw: Vec<u8>,
    aeoi: bool,
    sfnm: bool,
    rotate: bool,
    smm: bool,
    poll: bool,
    isr_next: bool,
    base: u8,
    slave_mask: u8,
    elcr_mask: u8,
}

fn pack(inputs: &[Input; 8], of: impl Fn(&Input) -> bool) -> u8 {
    inputs.iter().enumerate().filter(|(_, input)| of(input)).map(|(n, _)| 1 << n).sum()
}

impl Chip {
    fn new(elcr_mask: u8) -> Self {
        Self {
            inputs: Default::default(),
            order: (0..8).collect(),
            words: 0xff,
            icw: vec![],
            aeoi: false,
            sfnm: false,
            rotate: false,
            smm: false,
            poll: false,
            isr_next: false,
            base: 0,
            slave_mask: 0,
            elcr_mask,
        }
    }

    fn drive(&mut self, n: usize, high: bool) {
        let input = &mut self.inputs[n];
        if high && !input.line {
            input.latched = true;
        }
        if !high {
            input.latched = false;
        }
        input.line = high;
    }

    fn asks(input: &Input) -> bool {
        if input.level { input.line } else { input.latched }
    }

    fn next(&self) -> Option<usize> {
        if self.words != 0 {
            return None;
        }
        for &n in &self.order {
            let input = &self.inputs[n];
            let blocks = input.served && !(self.smm && input.masked);
            if blocks && !(n == 2 && self.sfnm && self.slave_mask & 4 != 0) {
                return None;
            }
            if Self::asks(input) && !input.masked {
                return Some(n);
            }
            if blocks {
                return None;
            }
        }
        None
    }

    fn sink(&mut self, n: usize) {
        while self.order[7] != n {
            self.order.rotate_left(1);
        }
    }

    fn take(&mut self) -> Option<usize> {
        let n = self.next()?;
        self.inputs[n].latched = false;
        if !self.aeoi {
            self.inputs[n].served = true;
        } else if self.rotate {
            self.sink(n);
        }
        Some(n)
    }

    fn command(&mut self, v: u8) {
        if v & 0x10 != 0 {
            let mut fresh = Self::new(self.elcr_mask);
            for (new, old) in fresh.inputs.iter_mut().zip(&self.inputs) {
                new.line = old.line;
                new.level = old.level;
            }
            fresh.base = self.base;
            fresh.icw = vec![v];
            fresh.words = 1 + u8::from(v & 2 == 0) + (v & 1);
            *self = fresh;
        } else if v & 8 != 0 {
            match v & 0x60 {
                0x40 => self.smm = false,
                0x60 => self.smm = true,
                _ => {}
            }
            self.poll = v & 4 != 0;
            match v & 3 {
                2 => self.isr_next = false,
                3 => self.isr_next = true,
                _ => {}
            }
        } else {
            let (rotate, specific, eoi) = (v & 0x80 != 0, v & 0x40 != 0, v & 0x20 != 0);
            let target = if specific {
                Some(usize::from(v & 7))
            } else {
                let live = |&&n: &&usize| self.inputs[n].served && !(self.smm && self.inputs[n].masked);
                self.order.iter().find(live).copied()
            };
            if eoi && let Some(n) = target {
                self.inputs[n].served = false;
            }
            if !eoi && !specific {
                self.rotate = rotate;
            } else if rotate && let Some(n) = target {
                self.sink(n);
            }
        }
    }

    fn data(&mut self, v: u8) {
        if self.words == 0 || self.words == 0xff {
            for (n, input) in self.inputs.iter_mut().enumerate() {
                input.masked = v >> n & 1 != 0;
            }
            return;
        }
        self.icw.push(v);
        self.words -= 1;
        let single = self.icw[0] & 2 != 0;
        if self.icw.len() == 2 {
            self.base = v & 0xf8;
        } else if self.icw.len() == 3 && !single {
            self.slave_mask = v;
        } else {
            self.aeoi = v & 2 != 0;
            self.sfnm = v & 0x10 != 0;
        }
    }
}

pub(super) struct Pair([Chip; 2]);

impl Pair {
    pub(super) fn new() -> Self {
        Self([Chip::new(0xf8), Chip::new(0xde)])
    }

    fn wire(&mut self) {
        let int = self.0[1].next().is_some();
        self.0[0].drive(2, int);
    }

    pub(super) fn drive(&mut self, irq: u8, high: bool) {
        if irq != 2 && irq < 16 {
            self.0[usize::from(irq / 8)].drive(usize::from(irq % 8), high);
        }
        self.wire();
    }

    pub(super) fn pending(&self) -> bool {
        self.0[0].next().is_some()
    }

    pub(super) fn acknowledge(&mut self) -> u8 {
        let n = self.0[0].take();
        if n == Some(2) && self.0[0].slave_mask & 4 != 0 {
            let m = self.0[1].take().unwrap_or(7);
            self.0[0].drive(2, false);
            self.wire();
            return self.0[1].base + m as u8;
        }
        self.0[0].base + n.unwrap_or(7) as u8
    }

    pub(super) fn write(&mut self, port: u16, v: u8) {
        let chip = &mut self.0[usize::from(port == 0x4d1 || port >> 4 == 0xa)];
        match port {
            0x4d0 | 0x4d1 => {
                for (n, input) in chip.inputs.iter_mut().enumerate() {
                    let level = v & chip.elcr_mask & (1 << n) != 0;
                    // While level-sensitive an input's edge is remembered too.
                    input.level = level;
                }
            }
            _ if port & 1 == 0 => chip.command(v),
            _ => chip.data(v),
        }
        self.wire();
    }

    pub(super) fn read(&mut self, port: u16) -> u8 {
        let second = port == 0x4d1 || port >> 4 == 0xa;
        let chip = &mut self.0[usize::from(second)];
        if port >> 4 == 0x4d {
            return pack(&chip.inputs, |input| input.level);
        }
        if chip.poll {
            chip.poll = false;
            let value = chip.take().map_or(0, |n| 0x80 + n as u8);
            if second {
                self.0[0].drive(2, false);
            }
            self.wire();
            return value;
        }
        match (port & 1, chip.isr_next) {
            (1, _) => pack(&chip.inputs, |input| input.masked),
            (_, true) => pack(&chip.inputs, |input| input.served),
            (_, false) => pack(&chip.inputs, Chip::asks),
        }
    }
}
