//! Requests in RESP2: multi-bulk and inline, read incrementally from a growing buffer.
//!
//! The parser keeps positions, not bytes: a request's arguments are ranges of the caller's buffer. It
//! accepts and refuses what Redis accepts and refuses, with the same messages.

use alloc::vec::Vec;
use core::ops::Range;

use crate::number::parse_int;

/// Longest inline request and longest header line, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// Most arguments of one request.
pub const MAX_ARGUMENTS: i64 = 1024 * 1024;

/// Longest argument that Redis allows, in bytes. The parser's own limit may be lower.
pub const MAX_BULK: i64 = 512 * 1024 * 1024;

/// What a look at the buffer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed. Call again with the same buffer, grown at its end.
    Incomplete,
    /// A request ends at this offset. Read it with [`Parser::arguments`], then call [`Parser::reset`]
    /// and drop that many bytes from the front of the buffer. No arguments: nothing to do or to answer.
    Request(usize),
    /// Part of a request that is too large to keep. Drop that many bytes from the front of the buffer
    /// and call again.
    Discard(usize),
    /// A request that was too large to keep ends at this offset: reset and drop as for `Request`.
    TooLarge(usize),
    /// The stream makes no sense. Nothing after it can be read.
    Error(ProtocolError),
}

/// Why a stream makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// An inline request without an end.
    InlineTooLong,
    /// A quote opened and not closed, or closed in the middle of a word.
    UnbalancedQuotes,
    /// An argument count line without an end.
    CountTooLong,
    /// An argument count that is no number, or above [`MAX_ARGUMENTS`].
    BadCount,
    /// An argument length line without an end.
    LengthTooLong,
    /// An argument length that is no number, negative, or above [`MAX_BULK`].
    BadLength,
    /// Something else where an argument should begin.
    NotABulk(u8),
}

impl ProtocolError {
    /// The text after `-ERR Protocol error: `, and for [`Self::NotABulk`] the byte to quote after it.
    #[must_use]
    pub fn message(self) -> (&'static str, Option<u8>) {
        match self {
            Self::InlineTooLong => ("too big inline request", None),
            Self::UnbalancedQuotes => ("unbalanced quotes in request", None),
            Self::CountTooLong => ("too big mbulk count string", None),
            Self::BadCount => ("invalid multibulk length", None),
            Self::LengthTooLong => ("too big bulk count string", None),
            Self::BadLength => ("invalid bulk length", None),
            Self::NotABulk(byte) => ("expected '$', got ", Some(byte)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the first byte of a request.
    Start,
    /// At an argument's `$`, this many arguments to go.
    Header { left: u32 },
    /// Inside an argument of `len` bytes.
    Body { left: u32, len: usize },
    /// Inside an argument that is not kept, `skip` bytes to its end.
    Skip { left: u32, skip: usize },
}

/// Reads one request at a time. See [`Step`] for what the caller owes it.
#[derive(Debug)]
pub struct Parser {
    max_bulk: usize,
    state: State,
    /// Where the current state's bytes begin.
    at: usize,
    /// Up to where a line end was searched for.
    searched: usize,
    too_large: bool,
    ranges: Vec<Range<u32>>,
    /// Arguments of an inline request, unquoted; `ranges` then point in here.
    unquoted: Vec<u8>,
    inline: bool,
}

impl Parser {
    /// A parser that keeps no argument longer than `max_bulk` bytes; longer ones, up to [`MAX_BULK`], are
    /// read over and end in [`Step::TooLarge`].
    #[must_use]
    pub fn new(max_bulk: usize) -> Self {
        Self {
            max_bulk: max_bulk.min(MAX_BULK as usize),
            state: State::Start,
            at: 0,
            searched: 0,
            too_large: false,
            ranges: Vec::new(),
            unquoted: Vec::new(),
            inline: false,
        }
    }

    /// Readies the parser for the next request.
    pub fn reset(&mut self) {
        self.state = State::Start;
        self.at = 0;
        self.searched = 0;
        self.too_large = false;
        self.inline = false;
        self.ranges.clear();
        self.unquoted.clear();
        if self.ranges.capacity() > 1024 {
            self.ranges = Vec::new();
        }
        if self.unquoted.capacity() > 4096 {
            self.unquoted = Vec::new();
        }
    }

    /// The arguments of the request that [`Step::Request`] told of, in the same buffer.
    #[must_use]
    pub fn arguments<'a>(&'a self, buffer: &'a [u8]) -> Arguments<'a> {
        Arguments { buffer: if self.inline { &self.unquoted } else { buffer }, ranges: &self.ranges }
    }

    /// How long the buffer must at least be before another look can tell more.
    #[must_use]
    pub fn needed(&self) -> usize {
        match self.state {
            State::Body { len, .. } => self.at + len + 2,
            _ => self.at + 1,
        }
    }

    /// Gives up keeping the current request, because the buffer cannot grow: the rest of it will be read
    /// over. Returns how many bytes to drop from the front of the buffer. An inline request cannot be
    /// given up (`None`): its end is not known.
    pub fn abandon(&mut self, buffered: usize) -> Option<usize> {
        let dropped = match self.state {
            State::Start => return None,
            State::Header { .. } | State::Skip { .. } => self.at,
            State::Body { left, len } => {
                let have = buffered.saturating_sub(self.at).min(len + 2);
                self.state = State::Skip { left, skip: len + 2 - have };
                self.at + have
            }
        };
        self.too_large = true;
        self.ranges = Vec::new();
        self.searched = 0;
        self.at = 0;
        Some(dropped)
    }

    /// Looks at the buffer, which begins with the current request.
    pub fn parse(&mut self, buffer: &[u8]) -> Step {
        loop {
            match self.state {
                State::Start => match buffer.first() {
                    None => return Step::Incomplete,
                    Some(b'*') => {
                        let (line, next) = match self.line(buffer, ProtocolError::CountTooLong) {
                            Err(step) => return step,
                            Ok(found) => found,
                        };
                        let left = match parse_int(&buffer[line]) {
                            Some(count) if count <= 0 => return Step::Request(next),
                            Some(count) if count <= MAX_ARGUMENTS => count as u32,
                            _ => return Step::Error(ProtocolError::BadCount),
                        };
                        self.enter(State::Header { left }, next);
                    }
                    Some(_) => return self.inline_request(buffer),
                },
                State::Header { left: 0 } if self.too_large => return Step::TooLarge(self.at),
                State::Header { left: 0 } => return Step::Request(self.at),
                State::Header { left } => {
                    match buffer.get(self.at) {
                        None => return Step::Incomplete,
                        Some(b'$') => {}
                        Some(&other) => return Step::Error(ProtocolError::NotABulk(other)),
                    }
                    let (line, next) = match self.line(buffer, ProtocolError::LengthTooLong) {
                        Err(step) => return step,
                        Ok(found) => found,
                    };
                    let len = match parse_int(&buffer[line]) {
                        Some(len) if (0..=MAX_BULK).contains(&len) => len as usize,
                        _ => return Step::Error(ProtocolError::BadLength),
                    };
                    if !self.too_large && len <= self.max_bulk && self.ranges.try_reserve(1).is_ok() {
                        self.enter(State::Body { left, len }, next);
                    } else {
                        self.too_large = true;
                        self.enter(State::Skip { left, skip: len + 2 }, 0);
                        return Step::Discard(next);
                    }
                }
                State::Body { left, len } => {
                    let end = self.at + len;
                    if buffer.len() < end + 2 {
                        return Step::Incomplete;
                    }
                    self.ranges.push(self.at as u32..end as u32);
                    self.enter(State::Header { left: left - 1 }, end + 2);
                }
                State::Skip { left, skip: 0 } => self.enter(State::Header { left: left - 1 }, 0),
                State::Skip { left, skip } => {
                    let n = skip.min(buffer.len());
                    if n == 0 {
                        return Step::Incomplete;
                    }
                    self.state = State::Skip { left, skip: skip - n };
                    return Step::Discard(n);
                }
            }
        }
    }

    fn enter(&mut self, state: State, at: usize) {
        self.state = state;
        self.at = at;
        self.searched = at;
    }

    /// Finds a header line that starts at `self.at`: the range behind its first byte, and where the next
    /// thing begins.
    fn line(&mut self, buffer: &[u8], too_long: ProtocolError) -> Result<(Range<usize>, usize), Step> {
        let from = self.searched.max(self.at);
        match buffer[from..].iter().position(|&byte| byte == b'\r') {
            Some(offset) => {
                let end = from + offset;
                self.searched = end;
                if end + 2 > buffer.len() {
                    return Err(Step::Incomplete);
                }
                Ok((self.at + 1..end, end + 2))
            }
            None if buffer.len() - self.at > MAX_LINE => Err(Step::Error(too_long)),
            None => {
                self.searched = buffer.len();
                Err(Step::Incomplete)
            }
        }
    }

    fn inline_request(&mut self, buffer: &[u8]) -> Step {
        let Some(offset) = buffer[self.searched..].iter().position(|&byte| byte == b'\n') else {
            self.searched = buffer.len();
            return if buffer.len() > MAX_LINE {
                Step::Error(ProtocolError::InlineTooLong)
            } else {
                Step::Incomplete
            };
        };
        let end = self.searched + offset;
        let line = buffer[..end].strip_suffix(b"\r").unwrap_or(&buffer[..end]);
        self.inline = true;
        match self.split(line) {
            Ok(()) => Step::Request(end + 1),
            Err(Split::Unbalanced) => Step::Error(ProtocolError::UnbalancedQuotes),
            Err(Split::NoMemory) => Step::TooLarge(end + 1),
        }
    }

    /// Splits an inline request into words, with the quoting of redis-cli.
    fn split(&mut self, line: &[u8]) -> Result<(), Split> {
        // Unquoting never lengthens: with this reserved, no push below allocates.
        self.unquoted.try_reserve(line.len()).map_err(|_| Split::NoMemory)?;
        let mut at = 0;
        loop {
            while line.get(at).is_some_and(|&byte| is_space(byte)) {
                at += 1;
            }
            if at == line.len() {
                return Ok(());
            }
            let start = self.unquoted.len();
            at = self.word(line, at)?;
            self.ranges.try_reserve(1).map_err(|_| Split::NoMemory)?;
            self.ranges.push(start as u32..self.unquoted.len() as u32);
        }
    }

    /// Unquotes one word that starts at `at`; where it ends.
    fn word(&mut self, line: &[u8], mut at: usize) -> Result<usize, Split> {
        while let Some(&byte) = line.get(at) {
            match byte {
                b'"' | b'\'' => {
                    at = self.quoted(line, at + 1, byte)?;
                    if line.get(at).is_some_and(|&after| !is_space(after)) {
                        return Err(Split::Unbalanced);
                    }
                }
                byte if is_space(byte) => break,
                byte => {
                    self.unquoted.push(byte);
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    /// Unquotes up to the closing quote; what follows it.
    fn quoted(&mut self, line: &[u8], mut at: usize, quote: u8) -> Result<usize, Split> {
        loop {
            let (byte, used) = match line.get(at..).unwrap_or_default() {
                [] => return Err(Split::Unbalanced),
                [first, ..] if *first == quote => return Ok(at + 1),
                [b'\\', b'\'', ..] if quote == b'\'' => (b'\'', 2),
                [b'\\', b'x', high, low, ..]
                    if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
                {
                    (hex(*high) << 4 | hex(*low), 4)
                }
                [b'\\', escaped, ..] if quote == b'"' => (unescape(*escaped), 2),
                [byte, ..] => (*byte, 1),
            };
            self.unquoted.push(byte);
            at += used;
        }
    }
}

enum Split {
    Unbalanced,
    NoMemory,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0)
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

/// The arguments of one request, the command's name first.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    buffer: &'a [u8],
    ranges: &'a [Range<u32>],
}

impl<'a> Arguments<'a> {
    /// How many, the name included.
    #[must_use]
    pub fn len(self) -> usize {
        self.ranges.len()
    }

    /// Whether there is not even a name.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.ranges.is_empty()
    }

    /// The argument at `index`, empty if there is none.
    #[must_use]
    pub fn at(self, index: usize) -> &'a [u8] {
        self.get(index).unwrap_or_default()
    }

    /// The argument at `index`.
    #[must_use]
    pub fn get(self, index: usize) -> Option<&'a [u8]> {
        let range = self.ranges.get(index)?;
        self.buffer.get(range.start as usize..range.end as usize)
    }

    /// The arguments from `index` on.
    pub fn from(self, index: usize) -> impl Iterator<Item = &'a [u8]> {
        self.ranges
            .get(index..)
            .unwrap_or_default()
            .iter()
            .filter_map(move |range| self.buffer.get(range.start as usize..range.end as usize))
    }

    /// Bytes in all arguments together.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }
}

#[cfg(test)]
mod tests;
