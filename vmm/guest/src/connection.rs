//! One client's byte stream: requests in, replies out. Knows nothing of sockets.

use alloc::vec::Vec;

use crate::command::{Engine, Session};
use crate::reply::{OUT_OF_MEMORY, Reply};
use crate::resp::{Parser, Step};

/// How much a connection may buffer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One argument.
    pub bulk: usize,
    /// Replies the client has not taken yet: while there are more, no further request is run.
    pub replies: usize,
}

/// An input buffer larger than this is given back once it is empty.
const KEEP: usize = 16 * 1024;

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    parser: Parser,
    /// The beginning of a request whose end has not arrived, and whatever came after it.
    pending: Vec<u8>,
    session: Session,
    limits: Limits,
    stalled: bool,
}

/// Why running requests stopped.
enum Stop {
    /// All that arrived is done.
    Starved,
    /// The connection ends, or the replies must leave first.
    Held,
}

impl Connection {
    /// A connection with that number, which clients can ask for.
    #[must_use]
    pub fn new(id: u64) -> Self {
        let limits = Limits { bulk: 512 << 20, replies: 4 << 20 };
        Self::with_limits(id, limits)
    }

    /// A connection with limits of its own.
    #[must_use]
    pub fn with_limits(id: u64, limits: Limits) -> Self {
        Self {
            parser: Parser::new(limits.bulk),
            pending: Vec::new(),
            session: Session { id, ..Session::default() },
            limits,
            stalled: false,
        }
    }

    /// Whether the connection is to be closed once its replies have left.
    #[must_use]
    pub fn closing(&self) -> bool {
        self.session.closing
    }

    /// Whether complete requests are waiting because too many replies are.
    #[must_use]
    pub fn stalled(&self) -> bool {
        self.stalled
    }

    /// Takes bytes that arrived, runs the requests they complete, and adds the replies to `reply`.
    /// Returns how many bytes were taken: all of them, unless the connection is [`Self::stalled`] or
    /// [`Self::closing`]. A stalled connection goes on when called again, with or without input.
    pub fn feed(&mut self, input: &[u8], engine: &mut Engine, reply: &mut Reply) -> usize {
        self.stalled = false;
        if self.session.closing {
            return 0;
        }
        if self.pending.is_empty() {
            let mut done = 0;
            let stop = self.run(input, &mut done, engine, reply);
            match stop {
                Stop::Held => done,
                Stop::Starved => {
                    self.keep(&input[done..], reply);
                    input.len()
                }
            }
        } else {
            self.keep(input, reply);
            let mut pending = core::mem::take(&mut self.pending);
            let mut done = 0;
            self.run(&pending, &mut done, engine, reply);
            pending.drain(..done);
            if !pending.is_empty() || pending.capacity() <= KEEP {
                self.pending = pending;
            }
            input.len()
        }
    }

    /// Runs requests from the front of `bytes`, and moves `done` past them.
    fn run(&mut self, bytes: &[u8], done: &mut usize, engine: &mut Engine, reply: &mut Reply) -> Stop {
        loop {
            if self.session.closing {
                return Stop::Held;
            }
            if reply.as_bytes().len() > self.limits.replies {
                self.stalled = true;
                return Stop::Held;
            }
            let rest = &bytes[*done..];
            match self.parser.parse(rest) {
                Step::Incomplete => return Stop::Starved,
                Step::Request(end) => {
                    let arguments = self.parser.arguments(rest);
                    if !engine.execute(&mut self.session, arguments, reply) {
                        self.session.closing = true;
                    }
                    self.parser.reset();
                    *done += end;
                }
                Step::Discard(n) => *done += n,
                Step::TooLarge(end) => {
                    self.parser.reset();
                    *done += end;
                    self.out_of_memory(reply);
                }
                Step::Error(error) => {
                    self.session.closing = true;
                    let (text, byte) = error.message();
                    if reply.begin() {
                        match byte {
                            None => reply.error_parts(&[b"ERR Protocol error: ", text.as_bytes()]),
                            Some(byte) => reply.error_parts(&[
                                b"ERR Protocol error: ",
                                text.as_bytes(),
                                b"'",
                                &[byte],
                                b"'",
                            ]),
                        }
                        reply.finish();
                    }
                }
            }
        }
    }

    /// Keeps bytes of a request that is not complete.
    fn keep(&mut self, input: &[u8], reply: &mut Reply) {
        if input.is_empty() {
            return;
        }
        let needed = self.parser.needed().saturating_sub(self.pending.len()).max(input.len());
        if self.pending.try_reserve_exact(needed).is_ok() {
            self.pending.extend_from_slice(input);
            return;
        }
        // Read over the rest of the request instead.
        if let Some(dropped) = self.parser.abandon(self.pending.len() + input.len()) {
            let from_pending = dropped.min(self.pending.len());
            self.pending.drain(..from_pending);
            self.pending.shrink_to_fit();
            let input = &input[dropped - from_pending..];
            if self.pending.try_reserve_exact(input.len()).is_ok() {
                self.pending.extend_from_slice(input);
                return;
            }
        }
        self.out_of_memory(reply);
        self.session.closing = true;
    }

    fn out_of_memory(&mut self, reply: &mut Reply) {
        if reply.begin() {
            reply.error(OUT_OF_MEMORY);
            reply.finish();
        } else {
            self.session.closing = true;
        }
    }
}
