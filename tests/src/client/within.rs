//! What a Linux guest sees of its own clocks: `tests/linux/clocks.c` runs in it and reports to its Redis.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::resp::{Parser, Reply, request};
use crate::lab::Namespace;

/// Where it reports to.
const KEY: &[u8] = b"tandem:clocks";

/// Between two looks.
const NAP: Duration = Duration::from_millis(100);

/// What was seen of one clock.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Seen {
    /// Readings.
    pub readings: u64,
    /// How far one ever lay behind the one before it, in nanoseconds.
    pub back: u64,
    /// The longest step from one to the next, in nanoseconds.
    pub step: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read {} times in the guest, ", self.readings)?;
        match self.back {
            0 => write!(f, "never went back; its longest step was {:.3} s", self.step as f64 / 1e9),
            back => write!(f, "went back by {back} ns"),
        }
    }
}

/// A report, of all since the guest's watch began.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Within {
    /// Reports so far, about one a second.
    pub reports: u32,
    /// `CLOCK_MONOTONIC`, read in a loop with pauses.
    pub monotonic: Seen,
    /// `CLOCK_REALTIME`, likewise.
    pub real: Seen,
    /// RDTSC, in a loop without.
    pub tsc: Seen,
}

impl Within {
    /// The clocks, with their names.
    #[must_use]
    pub const fn clocks(&self) -> [(&'static str, Seen); 3] {
        [("CLOCK_MONOTONIC", self.monotonic), ("CLOCK_REALTIME", self.real), ("the TSC", self.tsc)]
    }

    /// The first report after `reports` others, or the newest one where `reports` is `None`.
    ///
    /// # Errors
    /// When there is none within `patience`.
    pub fn ask(
        namespace: &Namespace,
        server: SocketAddrV4,
        reports: Option<u32>,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        namespace.enter(|| {
            let deadline = Instant::now() + patience;
            loop {
                let within = get(server, patience)?;
                if let Some(within) = within.filter(|within| reports.is_none_or(|n| within.reports > n)) {
                    return Ok(within);
                }
                if Instant::now() >= deadline {
                    bail!("the guest's watch on its clocks does not report");
                }
                std::thread::sleep(NAP);
            }
        })?
    }
}

fn get(server: SocketAddrV4, patience: Duration) -> anyhow::Result<Option<Within>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(server), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut question = Vec::new();
    request(&[b"GET", KEY], &mut question);
    stream.write_all(&question)?;
    let mut parser = Parser::default();
    loop {
        match parser.take()? {
            Some(Reply::Bulk(json)) => {
                return serde_json::from_slice(&json).map(Some).context("the guest's report on its clocks");
            }
            Some(Reply::Nil) => return Ok(None),
            Some(other) => bail!("to GET the guest answered {other:?}"),
            None => {}
        }
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) => bail!("the guest's Redis hung up"),
            Ok(len) => parser.push(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("the guest's report on its clocks"),
        }
    }
}
