//! Commands on the connection and the server.

use core::fmt::{self, Write};

use super::{Call, Error, table};
use crate::digest;
use crate::glob;
use crate::number::ShortText;
use crate::store::buffer;

pub(super) fn ping(call: &mut Call<'_>) -> Result<(), Error> {
    match call.len() {
        1 => call.reply.simple("PONG"),
        2 => call.reply.bulk(call.arguments.at(1)),
        _ => return Err(Error::Arity),
    }
    Ok(())
}

pub(super) fn echo(call: &mut Call<'_>) -> Result<(), Error> {
    call.reply.bulk(call.arguments.at(1));
    Ok(())
}

pub(super) fn quit(call: &mut Call<'_>) -> Result<(), Error> {
    call.session.closing = true;
    call.ok()
}

pub(super) fn select(call: &mut Call<'_>) -> Result<(), Error> {
    match call.int(1) {
        Ok(0) => call.ok(),
        Ok(_) => Err(Error::Other("ERR DB index is out of range")),
        Err(_) => Err(Error::Other("ERR invalid DB index")),
    }
}

/// Virtual time: since power-on.
pub(super) fn time(call: &mut Call<'_>) -> Result<(), Error> {
    let nanos = call.engine.now_nanos;
    call.reply.array(2);
    call.reply.bulk(ShortText::format(format_args!("{}", nanos / 1_000_000_000)).as_bytes());
    call.reply.bulk(ShortText::format(format_args!("{}", nanos / 1000 % 1_000_000)).as_bytes());
    Ok(())
}

pub(super) fn digest(call: &mut Call<'_>) -> Result<(), Error> {
    let digest = digest::digest(&call.engine.store);
    call.reply.bulk(ShortText::format(format_args!("{digest:032x}")).as_bytes());
    Ok(())
}

pub(super) fn debug(call: &mut Call<'_>) -> Result<(), Error> {
    if call.len() == 2 && call.is(1, "digest") { digest(call) } else { Err(Error::Subcommand) }
}

pub(super) fn shutdown(call: &mut Call<'_>) -> Result<(), Error> {
    for index in 1..call.len() {
        if !["nosave", "save", "now", "force"].iter().any(|word| call.is(index, word)) {
            return Err(Error::Syntax);
        }
    }
    call.engine.power_off = true;
    call.session.closing = true;
    Ok(())
}

const PARAMETERS: &[(&str, &str)] = &[
    ("appendonly", "no"),
    ("databases", "1"),
    ("maxmemory-policy", "noeviction"),
    ("port", "6379"),
    ("save", ""),
];

pub(super) fn config(call: &mut Call<'_>) -> Result<(), Error> {
    if call.is(1, "get") && call.len() >= 3 {
        let arguments = call.arguments;
        let matching = || {
            PARAMETERS
                .iter()
                .filter(|(name, _)| arguments.from(2).any(|pattern| glob::matches(pattern, name.as_bytes())))
        };
        call.reply.array(2 * matching().count());
        for (name, value) in matching() {
            call.reply.bulk(name.as_bytes());
            call.reply.bulk(value.as_bytes());
        }
        return Ok(());
    }
    match () {
        () if call.is(1, "resetstat") && call.len() == 2 => call.ok(),
        () if call.is(1, "set") && call.len() >= 4 => {
            Err(Error::Other("ERR CONFIG SET failed - parameters of this server are fixed"))
        }
        () => Err(Error::Subcommand),
    }
}

pub(super) fn command(call: &mut Call<'_>) -> Result<(), Error> {
    match call.len() {
        2 if call.is(1, "count") => call.reply.count(table::COMMANDS.len()),
        // Descriptions are for completion in redis-cli, which does without.
        1 => call.reply.array(0),
        _ if call.is(1, "docs") || call.is(1, "info") || call.is(1, "list") => call.reply.array(0),
        _ => return Err(Error::Subcommand),
    }
    Ok(())
}

pub(super) fn client(call: &mut Call<'_>) -> Result<(), Error> {
    match call.len() {
        3 if call.is(1, "setname") => {
            call.session.name = name(call.at(2))?;
            call.ok()
        }
        2 if call.is(1, "getname") => {
            match call.session.name.is_empty() {
                true => call.reply.null(),
                false => call.reply.bulk(&call.session.name),
            }
            Ok(())
        }
        2 if call.is(1, "id") => {
            call.reply.int(i64::try_from(call.session.id).unwrap_or(i64::MAX));
            Ok(())
        }
        4 if call.is(1, "setinfo") && (call.is(2, "lib-name") || call.is(2, "lib-ver")) => call.ok(),
        3 if call.is(1, "no-evict") || call.is(1, "no-touch") => call.ok(),
        _ => Err(Error::Subcommand),
    }
}

fn name(name: &[u8]) -> Result<alloc::vec::Vec<u8>, Error> {
    if name.iter().any(|byte| !(b'!'..=b'~').contains(byte)) {
        return Err(Error::Other("ERR Client names cannot contain spaces, newlines or special characters."));
    }
    Ok(buffer(name)?)
}

pub(super) fn hello(call: &mut Call<'_>) -> Result<(), Error> {
    let mut index = 2;
    if call.len() > 1 && call.int(1) != Ok(2) {
        return Err(match call.int(1) {
            Ok(_) => Error::Other("NOPROTO unsupported protocol version"),
            Err(_) => Error::Other("ERR Protocol version is not an integer or out of range"),
        });
    }
    while index < call.len() {
        if call.is(index, "setname") && index + 1 < call.len() {
            call.session.name = name(call.at(index + 1))?;
            index += 2;
        } else if call.is(index, "auth") && index + 2 < call.len() {
            // There is no password: any will do, as for Redis's default user.
            index += 3;
        } else {
            return Err(Error::Syntax);
        }
    }
    call.reply.array(14);
    for (key, value) in [("server", "redis"), ("version", VERSION)] {
        call.reply.bulk(key.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
    call.reply.bulk(b"proto");
    call.reply.int(2);
    call.reply.bulk(b"id");
    call.reply.int(i64::try_from(call.session.id).unwrap_or(i64::MAX));
    for (key, value) in [("mode", "standalone"), ("role", "master")] {
        call.reply.bulk(key.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
    call.reply.bulk(b"modules");
    call.reply.array(0);
    Ok(())
}

/// The version of Redis whose behaviour is the model.
const VERSION: &str = "7.0.0";

/// A text that grows on the heap, if it can.
struct Text {
    bytes: alloc::vec::Vec<u8>,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

pub(super) fn info(call: &mut Call<'_>) -> Result<(), Error> {
    let mut text = Text { bytes: alloc::vec::Vec::new() };
    for section in ["Server", "Clients", "Memory", "Stats", "Keyspace"] {
        let wanted = call.len() == 1
            || (1..call.len()).any(|index| {
                [section, "all", "everything", "default"].iter().any(|word| call.is(index, word))
            });
        if wanted {
            section_text(call, section, &mut text).map_err(|_| Error::OutOfMemory)?;
        }
    }
    call.reply.bulk(&text.bytes);
    Ok(())
}

fn section_text(call: &Call<'_>, section: &str, text: &mut Text) -> fmt::Result {
    let engine = &*call.engine;
    if !text.bytes.is_empty() {
        text.write_str("\r\n")?;
    }
    write!(text, "# {section}\r\n")?;
    match section {
        "Server" => write!(
            text,
            "redis_version:{VERSION}\r\nredis_mode:standalone\r\nos:tandem-guest\r\narch_bits:64\r\n\
             tcp_port:6379\r\nuptime_in_seconds:{}\r\n",
            engine.now_nanos / 1_000_000_000
        ),
        "Clients" => write!(text, "connected_clients:{}\r\n", engine.counters.clients),
        "Memory" => {
            let memory = (engine.memory)();
            write!(
                text,
                "used_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n",
                memory.used,
                memory.used.saturating_add(memory.free)
            )
        }
        "Stats" => write!(
            text,
            "total_connections_received:{}\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\n",
            engine.counters.connections,
            engine.counters.commands,
            engine.store.expired()
        ),
        _ if engine.store.is_empty() => Ok(()),
        _ => {
            write!(text, "db0:keys={},expires={},avg_ttl=0\r\n", engine.store.len(), engine.store.volatile())
        }
    }
}
