//! Which device answers which I/O port.

use std::ops::RangeInclusive;

/// All ports that a device has lie below this one.
const PORTS: usize = 0x1000;

/// The devices that answer ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortOwner {
    Pic,
    Pit,
    Serial,
    PmTimer,
    Rtc,
    I8042,
    Reset,
    Pm1,
}

impl PortOwner {
    pub(super) const ALL: [Self; 8] =
        [Self::Pic, Self::Pit, Self::Serial, Self::PmTimer, Self::Rtc, Self::I8042, Self::Reset, Self::Pm1];
}

/// Who answers which port: a table, since most exits are accesses of ports.
#[derive(Debug)]
pub(super) struct PortOwners(Vec<Option<PortOwner>>);

impl Default for PortOwners {
    fn default() -> Self {
        Self(vec![None; PORTS])
    }
}

impl PortOwners {
    /// These ports are `owner`'s.
    pub(super) fn claim(&mut self, owner: PortOwner, ports: &[RangeInclusive<u16>]) {
        for port in ports.iter().cloned().flatten() {
            if let Some(entry) = self.0.get_mut(usize::from(port)) {
                *entry = Some(owner);
            }
        }
    }

    /// Whose `port` is.
    pub(super) fn of(&self, port: u16) -> Option<PortOwner> {
        self.0.get(usize::from(port)).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_their_claimants() {
        let mut owners = PortOwners::default();
        owners.claim(PortOwner::Pit, &[0x40..=0x43, 0x61..=0x61]);
        owners.claim(PortOwner::I8042, &[0x60..=0x60, 0x64..=0x64]);
        for (port, owner) in [(0x40, PortOwner::Pit), (0x43, PortOwner::Pit), (0x61, PortOwner::Pit)] {
            assert_eq!(owners.of(port), Some(owner), "{port:#x}");
        }
        assert_eq!(owners.of(0x60), Some(PortOwner::I8042));
        for nobodys in [0, 0x44, 0x62, 0xfff, 0x1000, u16::MAX] {
            assert_eq!(owners.of(nobodys), None, "{nobodys:#x}");
        }
    }
}
