//! Numbers as Redis reads and writes them.

use core::fmt::{self, Write};

/// Reads a 64-bit integer the way Redis does: no spaces, no `+`, no leading zeros, nothing after it.
#[must_use]
pub fn parse_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!negative).then_some(0),
        [b'0', ..] => return None,
        _ if digits.len() > 19 => return None,
        _ => {}
    }
    let mut value = 0i64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // Counting downwards, since the lowest number has no positive twin.
        value = value.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

/// Reads a double. `inf` and `-inf` are numbers, NaN is not.
#[must_use]
pub fn parse_float(text: &[u8]) -> Option<f64> {
    let value: f64 = core::str::from_utf8(text).ok()?.parse().ok()?;
    (!value.is_nan()).then_some(value)
}

/// A short text on the stack; what does not fit is cut off.
#[derive(Clone, Debug)]
pub struct ShortText {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl ShortText {
    /// Bytes that fit: the longest `f64` in plain notation has 328.
    pub const CAPACITY: usize = 336;

    /// The formatted text.
    #[must_use]
    pub fn format(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; Self::CAPACITY], len: 0 };
        // Cutting off is what this type promises.
        let _ = text.write_fmt(arguments);
        text
    }

    /// An integer.
    #[must_use]
    pub fn int(value: i64) -> Self {
        Self::format(format_args!("{value}"))
    }

    /// A double: the shortest text that reads back as the same number.
    #[must_use]
    pub fn float(value: f64) -> Self {
        Self::format(format_args!("{}", if value == 0.0 { 0.0 } else { value }))
    }

    /// The bytes written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for ShortText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let n = text.len().min(Self::CAPACITY - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&text.as_bytes()[..n]);
        self.len += n;
        if n == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integers_are_read_strictly() {
        assert_eq!(parse_int(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_int(b"9223372036854775807"), Some(i64::MAX));
        for bad in
            ["", "-", "+1", " 1", "1 ", "01", "-0", "1.0", "9223372036854775808", "99999999999999999999"]
        {
            assert_eq!(parse_int(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn doubles_are_written_as_redis_does() {
        for (value, text) in [(1.0, "1"), (-0.0, "0"), (0.1, "0.1"), (f64::INFINITY, "inf"), (-2.5, "-2.5")] {
            assert_eq!(ShortText::float(value).as_bytes(), text.as_bytes());
        }
        assert_eq!(parse_float(b"nan"), None);
        assert_eq!(parse_float(b"-inf"), Some(f64::NEG_INFINITY));
    }

    proptest! {
        #[test]
        fn integers_round_trip(value in any::<i64>()) {
            prop_assert_eq!(parse_int(ShortText::int(value).as_bytes()), Some(value));
        }

        #[test]
        fn doubles_round_trip(value in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL) {
            prop_assert_eq!(parse_float(ShortText::float(value).as_bytes()), Some(value));
        }
    }
}
