//! Exits that the guest is spared: what the devices learn of the others, and what they do at those instead.

use super::clock::reads_counter;
use super::{Board, Exit, GuestMemory, Net, Outputs, VirtioMmio};

impl Board {
    /// An exit is going to be emulated.
    pub(in crate::machine) fn exited(&mut self, exit: &Exit) {
        if let Some(hpet) = &mut self.hpet {
            hpet.exit(self.now, reads_counter(exit));
        }
        for slot in &mut self.virtio {
            slot.exited(self.now, exit);
        }
    }

    /// The guest's wait for an interrupt ends.
    pub(in crate::machine) fn wakes(&mut self) {
        if let Some(hpet) = &mut self.hpet {
            hpet.wakes(self.now);
        }
        for slot in &mut self.virtio {
            slot.wakes(self.now);
        }
    }

    /// The guest was stopped where it has no exit.
    pub(in crate::machine) fn forced_stop(&mut self) {
        if let Some(hpet) = &mut self.hpet {
            hpet.forced_stop(self.now);
        }
        for slot in &mut self.virtio {
            slot.forced_stop(self.now);
        }
    }

    /// The guest stands at an exit or a forced stop: packets that it does not notify of go out.
    pub(in crate::machine) fn look(&mut self, memory: &GuestMemory, out: &mut dyn Outputs) {
        for slot in &mut self.virtio {
            if slot.look(memory, out) {
                self.pic.set_line(slot.irq(), slot.interrupt());
            }
        }
    }

    /// Whether there are such packets.
    #[must_use]
    pub fn holds_packets(&self, memory: &GuestMemory) -> bool {
        self.virtio.iter().any(|slot| slot.holds_packets(memory))
    }

    /// How many times a network driver was asked not to notify of what it sends.
    #[must_use]
    pub fn transmit_polls(&self) -> u64 {
        self.virtio.iter().filter_map(VirtioMmio::net).map(Net::polls_begun).sum()
    }
}
