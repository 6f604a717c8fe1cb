//! Exits that the guest is spared.

use super::{Machine, Outputs};

impl Machine {
    /// The guest was stopped where it has no exit: its state is captured, or was loaded.
    pub fn forced_stop(&mut self) {
        self.board.forced_stop();
    }

    /// Emulates a forced stop: what the guest has queued without a notification goes out.
    pub fn emulate_stop(&mut self, out: &mut dyn Outputs) {
        self.board.look(self.ram.memory(), out);
    }

    /// Whether the guest has queued packets of which it does not notify: they leave at the next exit or forced stop.
    #[must_use]
    pub fn holds_packets(&self) -> bool {
        self.board.holds_packets(self.ram.memory())
    }

    /// How many times a network driver was asked not to notify of what it sends.
    #[must_use]
    pub fn transmit_polls(&self) -> u64 {
        self.board.transmit_polls()
    }

    /// How many times the guest was given a page to read its clock from.
    #[must_use]
    pub const fn clock_pages(&self) -> u64 {
        self.clock_page.given()
    }
}
