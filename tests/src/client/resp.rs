//! The Redis protocol, RESP2, as far as the checking client speaks it.

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR …`
    Error(String),
    /// `:42`
    Integer(i64),
    /// `$5`
    Bulk(Vec<u8>),
    /// `$-1`
    Nil,
}

/// What cannot be a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a reply of RESP2: {0:?}")]
pub struct NotResp(String);

/// The longest line and the longest bulk string that this client asks for.
const LONGEST: usize = 64 << 10;

/// Appends a request.
pub fn request(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Takes bytes in any pieces, gives replies.
#[derive(Debug, Default)]
pub struct Parser {
    bytes: Vec<u8>,
    read: usize,
}

impl Parser {
    /// Takes what came in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.read);
        self.read = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next reply; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no reply.
    pub fn take(&mut self) -> Result<Option<Reply>, NotResp> {
        let rest = &self.bytes[self.read..];
        let Some(&kind) = rest.first() else { return Ok(None) };
        let wrong = || NotResp(String::from_utf8_lossy(&rest[..rest.len().min(40)]).into_owned());
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return if rest.len() > LONGEST { Err(wrong()) } else { Ok(None) };
        };
        let line = String::from_utf8_lossy(&rest[1..end]).into_owned();
        let mut taken = end + 2;
        let reply = match kind {
            b'+' => Reply::Simple(line),
            b'-' => Reply::Error(line),
            b':' => Reply::Integer(line.parse().map_err(|_| wrong())?),
            b'$' if line == "-1" => Reply::Nil,
            b'$' => {
                let len: usize = line.parse().map_err(|_| wrong())?;
                if len > LONGEST {
                    return Err(wrong());
                }
                let Some(bulk) = rest.get(taken..taken + len + 2) else { return Ok(None) };
                if !bulk.ends_with(b"\r\n") {
                    return Err(wrong());
                }
                taken += len + 2;
                Reply::Bulk(bulk[..len].to_vec())
            }
            _ => return Err(wrong()),
        };
        self.read += taken;
        Ok(Some(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_come_out_however_they_are_cut() {
        let bytes = b"+OK\r\n:-7\r\n$5\r\nab\r\nc\r\n$-1\r\n$0\r\n\r\n-ERR no\r\n";
        let expected = [
            Reply::Simple("OK".into()),
            Reply::Integer(-7),
            Reply::Bulk(b"ab\r\nc".to_vec()),
            Reply::Nil,
            Reply::Bulk(vec![]),
            Reply::Error("ERR no".into()),
        ];
        for size in 1..bytes.len() {
            let mut parser = Parser::default();
            let mut found = vec![];
            for piece in bytes.chunks(size) {
                parser.push(piece);
                while let Some(reply) = parser.take().unwrap() {
                    found.push(reply);
                }
            }
            assert_eq!(found, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for wrong in [&b"hello\r\n"[..], b":x\r\n", b"$x\r\n", b"$99999999\r\n", b"$1\r\nabc"] {
            let mut parser = Parser::default();
            parser.push(wrong);
            assert!(parser.take().is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let mut out = vec![];
        request(&[b"SET", b"k", b""], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }
}
