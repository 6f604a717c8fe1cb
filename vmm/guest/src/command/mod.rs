//! The Redis commands, and the engine that runs them.

use alloc::vec::Vec;

use crate::connection::Limits;
use crate::reply::{OUT_OF_MEMORY, Reply};
use crate::resp::Arguments;
use crate::store::{OutOfMemory, Store};

mod hashes;
mod keys;
mod lists;
mod server;
mod sets;
mod sorted;
mod strings;
mod table;

/// What the heap has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Allocated.
    pub used: usize,
    /// Left, though perhaps not in one piece.
    pub free: usize,
}

/// Numbers that INFO tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Commands run since the start.
    pub commands: u64,
    /// Connections accepted since the start.
    pub connections: u64,
    /// Connections open now.
    pub clients: usize,
}

/// The store, and what the commands need to know beside it.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    memory: fn() -> Memory,
    now_nanos: u64,
    power_off: bool,
    /// Counted here and by the server.
    pub counters: Counters,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// An empty engine that takes memory for unlimited.
    #[must_use]
    pub fn new() -> Self {
        Self::with_memory(|| Memory { used: 0, free: 1 << 40 })
    }

    /// An empty engine that asks `memory` before each command that may grow the store.
    #[must_use]
    pub fn with_memory(memory: fn() -> Memory) -> Self {
        Self { store: Store::new(), memory, now_nanos: 0, power_off: false, counters: Counters::default() }
    }

    /// The keys.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Sets virtual time, in nanoseconds since power-on, and removes some of the keys whose time has come.
    pub fn set_time(&mut self, nanos: u64) {
        let before = self.store.now();
        self.now_nanos = self.now_nanos.max(nanos);
        self.store.set_now(self.now_nanos / 1_000_000);
        if self.store.now() != before {
            self.store.expire_some(20);
        }
    }

    /// Whether a client asked for power-off.
    #[must_use]
    pub fn power_off(&self) -> bool {
        self.power_off
    }

    /// How much a connection may buffer, from the memory there is now.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let memory = (self.memory)();
        let total = memory.used.saturating_add(memory.free);
        Limits { bulk: total / 4, replies: (total / 16).min(4 << 20) }
    }

    /// Whether a request with that many argument bytes may still add to the store: a sixteenth of all
    /// memory stays free for buffers and for the copies that growing makes.
    fn may_grow(&self, bytes: usize) -> bool {
        let memory = (self.memory)();
        let total = memory.used.saturating_add(memory.free);
        memory.free >= (total / 16).saturating_add(bytes.saturating_mul(2))
    }

    /// Runs one request and writes its reply. `false`: there is not even room for an error message,
    /// the connection must end.
    #[must_use]
    pub fn execute(&mut self, session: &mut Session, arguments: Arguments<'_>, reply: &mut Reply) -> bool {
        if arguments.is_empty() {
            return true;
        }
        if !reply.begin() {
            return false;
        }
        self.counters.commands += 1;
        let Some(command) = table::find(arguments.at(0)) else {
            unknown(arguments, reply);
            reply.finish();
            return true;
        };
        let outcome = if !command.accepts(arguments.len()) {
            Err(Error::Arity)
        } else if command.grows && !self.may_grow(arguments.bytes()) {
            Err(Error::OutOfMemory)
        } else {
            (command.run)(&mut Call { engine: self, session, arguments, reply })
        };
        if let Err(error) = outcome {
            reply.withdraw();
            match error {
                Error::Arity => {
                    let name = command.name.as_bytes();
                    reply.error_parts(&[b"ERR wrong number of arguments for '", name, b"' command"]);
                }
                Error::ExpireTime => {
                    let name = command.name.as_bytes();
                    reply.error_parts(&[b"ERR invalid expire time in '", name, b"' command"]);
                }
                Error::Subcommand => {
                    let name = arguments.at(1);
                    let name = &name[..name.len().min(128)];
                    reply.error_parts(&[
                        b"ERR unknown subcommand or wrong number of arguments for '",
                        name,
                        b"'",
                    ]);
                }
                other => reply.error(other.message()),
            }
        }
        reply.finish();
        true
    }
}

fn unknown(arguments: Arguments<'_>, reply: &mut Reply) {
    let cut = |text: &[u8]| text.len().min(128);
    let mut parts: Vec<&[u8]> = Vec::new();
    if parts.try_reserve(64).is_err() {
        return reply.error(OUT_OF_MEMORY);
    }
    let name = arguments.at(0);
    parts.extend([&b"ERR unknown command '"[..], &name[..cut(name)], b"', with args beginning with: "]);
    let mut room = 128usize;
    for argument in arguments.from(1).take(20) {
        if room == 0 {
            break;
        }
        let shown = &argument[..argument.len().min(room)];
        room -= shown.len();
        parts.extend([&b"'"[..], shown, b"' "]);
    }
    reply.error_parts(&parts);
}

/// What one connection has set for itself.
#[derive(Debug, Default)]
pub struct Session {
    /// The connection's number.
    pub id: u64,
    /// The name given by CLIENT SETNAME.
    pub name: Vec<u8>,
    /// Whether the client asked to be disconnected.
    pub closing: bool,
}

/// Why a command was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    /// The wrong number of arguments.
    Arity,
    /// No such subcommand, or the wrong number of arguments for it.
    Subcommand,
    /// The key holds another type.
    WrongType,
    /// Not a 64-bit integer.
    NotAnInteger,
    /// Not a double.
    NotAFloat,
    /// An option that is not known, or does not go with another.
    Syntax,
    /// An expiry that is zero, negative or too far away.
    ExpireTime,
    /// Memory does not suffice.
    OutOfMemory,
    /// Anything else, in Redis's words.
    Other(&'static str),
}

impl Error {
    fn message(self) -> &'static str {
        match self {
            Self::Arity | Self::Subcommand | Self::ExpireTime => "ERR wrong arguments",
            Self::WrongType => "WRONGTYPE Operation against a key holding the wrong kind of value",
            Self::NotAnInteger => "ERR value is not an integer or out of range",
            Self::NotAFloat => "ERR value is not a valid float",
            Self::Syntax => "ERR syntax error",
            Self::OutOfMemory => OUT_OF_MEMORY,
            Self::Other(text) => text,
        }
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// One request being run.
struct Call<'a> {
    engine: &'a mut Engine,
    session: &'a mut Session,
    arguments: Arguments<'a>,
    reply: &'a mut Reply,
}

impl<'a> Call<'a> {
    fn store(&mut self) -> &mut Store {
        &mut self.engine.store
    }

    /// The argument at `index`; the command's name is at zero. Empty if there is none.
    fn at(&self, index: usize) -> &'a [u8] {
        self.arguments.at(index)
    }

    fn len(&self) -> usize {
        self.arguments.len()
    }

    fn int(&self, index: usize) -> Result<i64, Error> {
        crate::number::parse_int(self.at(index)).ok_or(Error::NotAnInteger)
    }

    /// The optional count of a command that pops, as its second argument.
    fn pop_count(&self) -> Result<Option<usize>, Error> {
        match self.len() {
            2 => Ok(None),
            3 => match usize::try_from(self.int(2)?) {
                Ok(count) => Ok(Some(count)),
                Err(_) => Err(Error::Other("ERR value is out of range, must be positive")),
            },
            _ => Err(Error::Arity),
        }
    }

    /// Whether the argument at `index` is this word, in any case.
    fn is(&self, index: usize, word: &str) -> bool {
        self.at(index).eq_ignore_ascii_case(word.as_bytes())
    }

    fn ok(&mut self) -> Result<(), Error> {
        self.reply.simple("OK");
        Ok(())
    }
}

/// Start and end as LRANGE and ZRANGE count them, from the end if negative, as a range of `len` elements.
fn span(start: i64, stop: i64, len: usize) -> core::ops::Range<usize> {
    let size = i64::try_from(len).unwrap_or(i64::MAX);
    let from_end = |index: i64| if index < 0 { index.saturating_add(size) } else { index };
    let (start, stop) = (from_end(start).max(0), from_end(stop).min(size - 1));
    if start > stop { 0..0 } else { start as usize..stop as usize + 1 }
}

/// Runs one line of a script; its reply.
#[cfg(test)]
pub(crate) fn run(engine: &mut Engine, line: &str) -> std::string::String {
    let mut connection = crate::connection::Connection::new(1);
    let mut reply = Reply::new();
    let line = std::format!("{line}\r\n");
    assert_eq!(connection.feed(line.as_bytes(), engine, &mut reply), line.len());
    std::string::String::from_utf8_lossy(reply.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests;
