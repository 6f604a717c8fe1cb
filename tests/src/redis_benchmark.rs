//! redis-benchmark, run in the lab.

use std::io::Read;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::bed::CORES;
use crate::lab::{Namespace, move_this_thread_to};
use crate::process::{cores, pin_this_thread};

/// Connections.
const CLIENTS: u32 = 50;

/// Requests per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of SET.
    pub set: f64,
    /// Of GET.
    pub get: f64,
}

/// Runs SET and GET, so many of each, on the clients' core.
///
/// # Errors
/// Without redis-benchmark, when the server fails it, or after `patience`.
pub fn run(
    client: &Namespace,
    server: SocketAddrV4,
    requests: u64,
    patience: Duration,
) -> anyhow::Result<Rates> {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let (requests, clients) = (requests.to_string(), CLIENTS.to_string());
    let mut command = Command::new("redis-benchmark");
    command
        .args(["-h", &ip, "-p", &port, "-t", "set,get", "-n", &requests, "-c", &clients, "--csv"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let namespace = client.as_raw_fd();
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            move_this_thread_to(namespace)?;
            if cores() > CORES[0] { pin_this_thread(CORES[0]) } else { Ok(()) }
        });
    }
    let mut child = command.spawn().context("cannot run redis-benchmark: install redis-tools")?;
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("redis-benchmark was not done after {patience:.0?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    child.stdout.take().context("no output")?.read_to_string(&mut text)?;
    if !status.success() {
        bail!("redis-benchmark ended with {status}");
    }
    parse(&text).with_context(|| format!("redis-benchmark printed what is not understood:\n{text}"))
}

/// Whether it is installed.
#[must_use]
pub fn is_installed() -> bool {
    Command::new(Path::new("redis-benchmark")).arg("--version").output().is_ok()
}

/// `"SET","51234.56",…` and the like.
fn parse(text: &str) -> Option<Rates> {
    let rate = |test: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(',').map(|field| field.trim_matches('"'));
            (fields.next() == Some(test)).then(|| fields.next()?.parse::<f64>().ok())?
        })
    };
    Some(Rates { set: rate("SET")?, get: rate("GET")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_are_found_in_the_table() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"51020.41\",\"0.5\"\n\"GET\",\"60000.00\",\"0.4\"\n";
        assert_eq!(parse(text), Some(Rates { set: 51020.41, get: 60000.0 }));
        assert_eq!(parse("Could not connect\n"), None);
    }
}
