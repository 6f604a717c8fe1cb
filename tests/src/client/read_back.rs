//! Asking for every key in the end.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use super::ledger::{Ledger, Violation};
use super::resp::{Parser, Reply, request};

/// Keys asked for in one go.
const AT_ONCE: usize = 64;

/// Asks for every key of some ledgers on a new connection, and tells what is not as it must be.
///
/// # Errors
/// When the server cannot be asked.
pub(super) fn read_back(
    ledgers: &[Ledger],
    server: SocketAddrV4,
    patience: Duration,
) -> anyhow::Result<Vec<Violation>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(server), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    let mut parser = Parser::default();
    let mut found = Vec::new();
    for ledger in ledgers {
        for keys in ledger.keys().chunks(AT_ONCE) {
            let mut requests = Vec::new();
            keys.iter().for_each(|(_, _, key)| request(&[b"GET", key.as_bytes()], &mut requests));
            stream.write_all(&requests)?;
            for (kind, index, _) in keys {
                let reply = next_reply(&mut stream, &mut parser)?;
                found.extend(ledger.judge(*kind, *index, &reply).err());
            }
        }
    }
    Ok(found)
}

fn next_reply(stream: &mut TcpStream, parser: &mut Parser) -> anyhow::Result<Reply> {
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(reply) = parser.take()? {
            return Ok(reply);
        }
        match stream.read(&mut buffer)? {
            0 => anyhow::bail!("the server closed the connection while it was read back"),
            len => parser.push(&buffer[..len]),
        }
    }
}
