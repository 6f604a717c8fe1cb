//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// A unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

/// Why a text is not an address that a network card can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six groups of two hex digits.
    #[error("expected six pairs of hex digits, as in 52:54:00:12:34:56")]
    Form,
    /// Bit 0 of the first byte is set: a group of stations, not one.
    #[error("is a multicast address: the second digit must be even, as in 52:…")]
    Multicast,
    /// All zero.
    #[error("the all-zero address belongs to nobody")]
    Zero,
}

impl MacAddress {
    /// Makes an address of six bytes, in the order they are sent.
    ///
    /// # Errors
    /// Multicast addresses (broadcast is one) and the all-zero address are refused.
    pub const fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        if bytes[0] & 1 != 0 {
            return Err(MacError::Multicast);
        }
        if matches!(bytes, [0, 0, 0, 0, 0, 0]) {
            return Err(MacError::Zero);
        }
        Ok(Self(bytes))
    }

    /// The six bytes, in the order they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            let group = groups.next().ok_or(MacError::Form)?;
            if group.len() != 2 || !group.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError::Form);
            }
            *byte = u8::from_str_radix(group, 16).map_err(|_| MacError::Form)?;
        }
        if groups.next().is_some() {
            return Err(MacError::Form);
        }
        Self::new(bytes)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_back(bytes in any::<[u8; 6]>()) {
            if let Ok(mac) = MacAddress::new(bytes) {
                prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            }
        }
    }

    #[test]
    fn what_no_card_can_have_is_refused() {
        assert_eq!("53:54:00:12:34:56".parse::<MacAddress>(), Err(MacError::Multicast));
        assert_eq!("ff:ff:ff:ff:ff:ff".parse::<MacAddress>(), Err(MacError::Multicast));
        assert_eq!("00:00:00:00:00:00".parse::<MacAddress>(), Err(MacError::Zero));
        for wrong in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "+2:54:00:12:34:56"]
        {
            assert_eq!(wrong.parse::<MacAddress>(), Err(MacError::Form), "{wrong}");
        }
    }
}
