//! When the guest reads a clock, and how.

use super::{Board, Exit, PortOwner};
use crate::machine::devices::hpet::{self, Hpet, Shown};

/// Whether the guest reads the HPET's counter, by an exit.
pub(super) fn reads_counter(exit: &Exit) -> bool {
    matches!(*exit, Exit::MmioRead { address, .. } if address.wrapping_sub(hpet::COUNTER) < 8)
}

/// Offset of `address` in the HPET's registers.
fn hpet_offset(address: u64) -> Option<u64> {
    address.checked_sub(hpet::ADDRESS).filter(|offset| *offset < hpet::LEN)
}

impl Board {
    /// What the page of the HPET's registers holds now; `None`: the guest has no such page.
    #[must_use]
    pub fn clock_page(&self) -> Option<Shown> {
        self.hpet.as_ref()?.shown(self.now)
    }

    /// Whether the guest's clock stands still from one exit to the next, so that time should be fresh at each.
    #[must_use]
    pub fn clock_stands_still(&self) -> bool {
        self.hpet.as_ref().is_some_and(Hpet::stands_still)
    }

    /// Whether the host's TSC may be in the guest's registers at this exit, which is not emulated yet.
    #[must_use]
    pub fn exposes_tsc(&self, exit: &Exit) -> bool {
        self.hpet.as_ref().is_some_and(|hpet| hpet.exposes_tsc(reads_counter(exit)))
    }

    /// Whether the last exit was of that kind.
    #[must_use]
    pub fn has_exposed_tsc(&self) -> bool {
        self.hpet.as_ref().is_some_and(Hpet::has_exposed_tsc)
    }

    /// The HPET, and the offset of `address` in its registers.
    pub(super) fn hpet_at(&mut self, address: u64) -> Option<(&mut Hpet, u64)> {
        Some((self.hpet.as_mut()?, hpet_offset(address)?))
    }

    /// Whether emulating this exit reads virtual time, so that it should be fresh.
    #[must_use]
    pub fn reads_clock(&self, exit: &Exit) -> bool {
        match *exit {
            _ if self.clock_stands_still() => true,
            Exit::MmioRead { address, .. } | Exit::MmioWrite { address, .. } => {
                self.hpet.is_some() && hpet_offset(address).is_some()
            }
            Exit::PortIn { port, .. } | Exit::PortOut { port, .. } => {
                matches!(self.owners.of(port), Some(PortOwner::Pit | PortOwner::Rtc | PortOwner::PmTimer))
            }
            // The pause is there for an input, which may need the time; and the log finds it by its reading.
            Exit::Captured => true,
            _ => false,
        }
    }
}
