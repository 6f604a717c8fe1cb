//! Replies in RESP2, written to a buffer that may run out of memory.

use alloc::vec::Vec;

use crate::number::ShortText;

/// The reply to a request that memory does not suffice for.
pub const OUT_OF_MEMORY: &str = "OOM command not allowed when used memory > 'maxmemory'.";

/// Room kept free so that [`OUT_OF_MEMORY`] always fits.
const SPARE: usize = 80;

/// Collects replies. A reply that does not fit is withdrawn as a whole: [`Reply::finish`] puts
/// [`OUT_OF_MEMORY`] in its place.
#[derive(Debug, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    start: usize,
    failed: bool,
}

impl Reply {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), start: 0, failed: false }
    }

    /// What was written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets everything, and gives the memory back if it is more than `keep` bytes.
    pub fn clear(&mut self, keep: usize) {
        self.bytes.clear();
        self.start = 0;
        self.failed = false;
        if self.bytes.capacity() > keep {
            self.bytes = Vec::new();
        }
    }

    /// Begins the reply to one request. `false`: not even an error message fits.
    #[must_use]
    pub fn begin(&mut self) -> bool {
        self.start = self.bytes.len();
        self.failed = false;
        self.bytes.try_reserve(SPARE).is_ok()
    }

    /// Ends the reply to one request.
    pub fn finish(&mut self) {
        if self.failed {
            self.failed = false;
            self.bytes.truncate(self.start);
            self.error(OUT_OF_MEMORY);
        }
    }

    /// Withdraws what was written since [`Reply::begin`].
    pub fn withdraw(&mut self) {
        self.bytes.truncate(self.start);
        self.failed = false;
    }

    /// Raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        if self.failed || self.bytes.try_reserve(bytes.len()).is_err() {
            self.failed = true;
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// A status, such as `OK`.
    pub fn simple(&mut self, text: &str) {
        self.raw(b"+");
        self.raw(text.as_bytes());
        self.raw(b"\r\n");
    }

    /// An error; the first word is its code. Line ends become spaces.
    pub fn error(&mut self, text: &str) {
        self.error_parts(&[text.as_bytes()]);
    }

    /// An error made of several pieces.
    pub fn error_parts(&mut self, parts: &[&[u8]]) {
        self.raw(b"-");
        for part in parts {
            let from = self.bytes.len();
            self.raw(part);
            for byte in self.bytes.get_mut(from..).unwrap_or_default() {
                if matches!(*byte, b'\r' | b'\n') {
                    *byte = b' ';
                }
            }
        }
        self.raw(b"\r\n");
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        self.header(b':', value);
    }

    /// A count or a length, as an integer.
    pub fn count(&mut self, value: usize) {
        self.int(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// A string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        // One check for all three parts.
        if self.failed || self.bytes.try_reserve(bytes.len().saturating_add(32)).is_err() {
            self.failed = true;
            return;
        }
        self.header(b'$', i64::try_from(bytes.len()).unwrap_or(i64::MAX));
        self.bytes.extend_from_slice(bytes);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// A string or nothing.
    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// A double, as a string.
    pub fn float(&mut self, value: f64) {
        self.bulk(ShortText::float(value).as_bytes());
    }

    /// No string.
    pub fn null(&mut self) {
        self.raw(b"$-1\r\n");
    }

    /// No array.
    pub fn null_array(&mut self) {
        self.raw(b"*-1\r\n");
    }

    /// The head of an array of that many elements, which follow.
    pub fn array(&mut self, len: usize) {
        self.header(b'*', i64::try_from(len).unwrap_or(i64::MAX));
    }

    fn header(&mut self, kind: u8, value: i64) {
        // kind, sign, 19 digits, line end
        let mut text = [0u8; 23];
        let mut at = text.len() - 2;
        text[at..].copy_from_slice(b"\r\n");
        let mut rest = value.unsigned_abs();
        loop {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if value < 0 {
            at -= 1;
            text[at] = b'-';
        }
        at -= 1;
        text[at] = kind;
        self.raw(&text[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_written_as_resp2() {
        let mut reply = Reply::new();
        assert!(reply.begin());
        reply.simple("OK");
        reply.error("ERR no\r\nway");
        reply.int(i64::MIN);
        reply.int(i64::MAX);
        reply.bulk(b"");
        reply.bulk_or_null(None);
        reply.array(2);
        reply.float(1.5);
        reply.null_array();
        reply.finish();
        assert_eq!(
            reply.as_bytes(),
            b"+OK\r\n-ERR no  way\r\n:-9223372036854775808\r\n:9223372036854775807\r\n$0\r\n\r\n$-1\r\n*2\r\n$3\r\n1.5\r\n*-1\r\n"
        );
    }
}
