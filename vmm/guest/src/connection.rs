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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::digest::digest;
    use proptest::prelude::*;
    use std::format;

    /// How many whole replies these bytes are; `None` if they are anything else.
    pub(crate) fn replies_in(mut bytes: &[u8]) -> Option<usize> {
        fn one(bytes: &[u8]) -> Option<&[u8]> {
            let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
            let (line, rest) = (&bytes[1..end], &bytes[end + 2..]);
            let number = || std::str::from_utf8(line).ok()?.parse::<i64>().ok();
            match bytes[0] {
                b'+' | b'-' => Some(rest),
                b':' => number().map(|_| rest),
                b'$' => match number()? {
                    -1 => Some(rest),
                    len => rest.get(len as usize..)?.strip_prefix(b"\r\n"),
                },
                b'*' => (0..number()?).try_fold(rest, |rest, _| one(rest)),
                _ => None,
            }
        }
        let mut count = 0;
        while !bytes.is_empty() {
            bytes = one(bytes)?;
            count += 1;
        }
        Some(count)
    }

    /// Feeds pieces; everything answered, and the store's digest.
    fn feed(pieces: &[&[u8]], limits: Limits) -> (Vec<u8>, u128) {
        let mut engine = Engine::new();
        let mut connection = Connection::with_limits(1, limits);
        let (mut replies, mut reply) = (Vec::new(), Reply::new());
        for piece in pieces {
            let mut rest = *piece;
            loop {
                rest = &rest[connection.feed(rest, &mut engine, &mut reply)..];
                replies.extend_from_slice(reply.as_bytes());
                reply.clear(0);
                if !connection.stalled() {
                    break;
                }
            }
        }
        (replies, digest(engine.store()))
    }

    const WIDE: Limits = Limits { bulk: 1 << 20, replies: 1 << 20 };

    fn request(words: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }

    fn any_request() -> impl Strategy<Value = Vec<u8>> {
        let key = || proptest::collection::vec(b'a'..b'd', 1..2);
        let text = || proptest::collection::vec(any::<u8>(), 0..60);
        prop_oneof![
            (key(), text()).prop_map(|(key, text)| request(&[b"SET".to_vec(), key, text])),
            (key(), text()).prop_map(|(key, text)| request(&[b"APPEND".to_vec(), key, text])),
            (key(), text()).prop_map(|(key, text)| request(&[b"RPUSH".to_vec(), key, text])),
            key().prop_map(|key| request(&[b"GET".to_vec(), key])),
            key().prop_map(|key| request(&[b"DEL".to_vec(), key])),
            key().prop_map(|key| request(&[b"INCR".to_vec(), key])),
            Just(b"PING\r\n".to_vec()),
            text().prop_map(|name| request(&[name])),
        ]
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            feed(&[&bytes], WIDE);
        }

        #[test]
        fn pipelined_equals_sequential_and_any_split(
            requests in proptest::collection::vec(any_request(), 0..20),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..10),
            bulk in prop_oneof![Just(1usize << 20), 10usize..60],
            replies in prop_oneof![Just(1usize << 20), 0usize..80],
        ) {
            let limits = Limits { bulk, replies };
            let sequential = feed(&requests.iter().map(Vec::as_slice).collect::<Vec<_>>(), Limits { bulk, ..WIDE });
            prop_assert_eq!(replies_in(&sequential.0), Some(requests.len()));
            let stream = requests.concat();
            prop_assert_eq!(&feed(&[&stream], limits), &sequential);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&feed(&pieces, limits), &sequential);
        }
    }

    #[test]
    fn a_protocol_error_is_told_and_ends_the_connection() {
        let mut connection = Connection::new(1);
        let (mut engine, mut reply) = (Engine::new(), Reply::new());
        connection.feed(b"PING\r\n*1\r\nxPING\r\n", &mut engine, &mut reply);
        assert_eq!(reply.as_bytes(), b"+PONG\r\n-ERR Protocol error: expected '$', got 'x'\r\n");
        assert!(connection.closing());
        assert_eq!(connection.feed(b"PING\r\n", &mut engine, &mut reply), 0);
    }

    /// An allocation that could not fail would end the test's process here.
    fn feed_with(budget: usize, requests: &[Vec<u8>]) -> (Vec<Reply>, Engine, Connection) {
        let (mut engine, mut connection) = (Engine::new(), Connection::with_limits(1, WIDE));
        let mut replies: Vec<Reply> = requests.iter().map(|_| Reply::new()).collect();
        crate::scarcity::with_budget(budget, || {
            for (request, reply) in requests.iter().zip(&mut replies) {
                // In two pieces, so that the first must be kept.
                let (head, tail) = request.split_at(request.len() / 2);
                connection.feed(head, &mut engine, reply);
                connection.feed(tail, &mut engine, reply);
            }
        });
        (replies, engine, connection)
    }

    proptest! {
        #[test]
        fn memory_may_run_out_anywhere(
            requests in proptest::collection::vec(prop_oneof![any_request(), heavy_request()], 1..40),
            budget in 0usize..6000,
        ) {
            let (replies, mut engine, mut connection) = feed_with(budget, &requests);
            let mut alive = true;
            for reply in &replies {
                let count = replies_in(reply.as_bytes()).unwrap();
                prop_assert!(count <= 1 && (count == 1 || connection.closing()));
                alive &= count == 1;
            }
            let _ = digest(engine.store());
            if alive && !connection.closing() {
                let mut reply = Reply::new();
                connection.feed(b"SET x 1\r\nGET x\r\n", &mut engine, &mut reply);
                prop_assert_eq!(reply.as_bytes(), b"+OK\r\n$1\r\n1\r\n");
            }
        }
    }

    #[test]
    fn little_memory_refuses_and_none_ends_the_connection() {
        let set = request(&[b"SET".to_vec(), b"k".to_vec(), Vec::from([b'x'; 1000])]);
        let requests = [set, request(&[b"PING".to_vec()])];
        let (replies, ..) = feed_with(800, &requests);
        assert_eq!(replies[0].as_bytes(), format!("-{OUT_OF_MEMORY}\r\n").as_bytes());
        assert_eq!(replies[1].as_bytes(), b"+PONG\r\n");
        let (replies, _, connection) = feed_with(0, &requests);
        assert!(replies.iter().all(|reply| reply.as_bytes().is_empty()) && connection.closing());
    }

    fn heavy_request() -> impl Strategy<Value = Vec<u8>> {
        let words = || proptest::collection::vec(proptest::collection::vec(b'a'..=b'z', 1..40), 2..20);
        let names = &[
            ("MSET", 2),
            ("RPUSH", 1),
            ("SADD", 1),
            ("HSET", 1),
            ("KEYS", 0),
            ("LRANGE", 0),
            ("INFO", 0),
            ("CLIENT", 0),
        ];
        (proptest::sample::select(&names[..]), words()).prop_map(|((name, odd), mut words)| {
            if odd > 0 && words.len() % 2 != odd % 2 {
                words.pop();
            }
            match name {
                "KEYS" => words = Vec::from([b"*".to_vec()]),
                "LRANGE" => words = Vec::from([b"a".to_vec(), b"0".to_vec(), b"-1".to_vec()]),
                "CLIENT" => words = Vec::from([b"SETNAME".to_vec(), words.concat()]),
                _ => {}
            }
            words.insert(0, name.as_bytes().to_vec());
            request(&words)
        })
    }

    #[test]
    fn a_large_value_arrives_in_pieces() {
        let value: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        let stream = [
            request(&[b"SET".to_vec(), b"k".to_vec(), value.clone()]),
            request(&[b"GET".to_vec(), b"k".to_vec()]),
        ]
        .concat();
        let pieces: Vec<&[u8]> = stream.chunks(1460).collect();
        let (replies, _) = feed(&pieces, WIDE);
        assert_eq!(replies, [b"+OK\r\n$1000000\r\n", value.as_slice(), b"\r\n"].concat());
    }
}
