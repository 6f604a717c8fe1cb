//! Letting outputs out, and the right of the vCPU thread to do so itself.

use std::sync::atomic::{Ordering, fence};

use super::super::clock::now;
use super::super::delay::Leaving;
use super::Loop;

impl Loop {
    /// Tells all threads that let outputs out until when they may. After everything that may have changed it.
    pub(super) fn publish_lease(&self) {
        self.s.shared.lease.set(self.s.side.gate().leased_until().as_nanos());
    }

    /// What an ack has made free leaves.
    pub(super) fn release_acknowledged(&mut self) {
        // Pairs with the one in `PairLog::made_outputs`: that the ack is taken in is seen there, or the output here.
        fence(Ordering::SeqCst);
        let before = self.s.side.gate().gone();
        self.release();
        self.attention.heard(self.s.side.gate().gone() > before);
    }

    /// Lets out what may leave.
    pub(super) fn release(&mut self) {
        let mut leaving: Option<Leaving> = None;
        let mut round = None;
        while let Some(held) = self.s.gate.front() {
            let number = match self.bound {
                Some(number) => number,
                None => match self.s.side.bind(held.sequence) {
                    Ok(number) => *self.bound.insert(number),
                    Err(_) => break,
                },
            };
            let turn = now();
            // The way out looks at the lease once more: this process may be stopped behind this look.
            if self.s.side.releasable(turn) <= number || !self.s.exits.send(&held, &self.s.shared.lease) {
                break;
            }
            let this = held.is_output().then(|| held.leaving(*round.get_or_insert(turn), turn));
            self.s.gate.take();
            // One look at the clock for the end of one and the turn of the next.
            if let Some(before) = std::mem::replace(&mut leaving, this) {
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
