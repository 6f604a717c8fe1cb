//! Letting outputs out, and the right of the vCPU thread to do so itself.

use std::sync::atomic::Ordering;

use super::super::clock::now;
use super::super::delay::Leaving;
use super::Loop;

impl Loop {
    /// Tells the vCPU thread until when packets may pass by the gate. After everything that may have changed it.
    pub(super) fn publish_lease(&self) {
        let until = self.s.side.gate().leased_until();
        self.s.shared.leased_until.store(until.as_nanos(), Ordering::Release);
    }

    /// Lets out what may leave.
    pub(super) fn release(&mut self) {
        let mut leaving: Option<Leaving> = None;
        while let Some(held) = self.s.gate.front() {
            let number = match self.bound {
                Some(number) => number,
                None => match self.s.side.bind(held.sequence) {
                    Ok(number) => *self.bound.insert(number),
                    Err(_) => break,
                },
            };
            // As late as can be: a process that is stopped between this look and the packet sends that one when it goes
            // on, however late. With the departure of the output before in its place, one of 22 in a torture did.
            let turn = now();
            if self.s.side.releasable(turn) <= number {
                break;
            }
            self.s.exits.send(&held);
            let this = held.leaving(leaving.map_or(turn, |before| before.round), turn);
            self.s.gate.take();
            // One look at the clock for the end of one and the turn of the next.
            if let Some(before) = leaving.replace(this) {
                self.s.gate.delays.left(before, turn);
            }
            self.s.side.released(number + 1);
            self.bound = None;
        }
        if let Some(last) = leaving {
            self.s.gate.delays.left(last, now());
        }
        self.s.exits.terminal.flush();
    }
}
