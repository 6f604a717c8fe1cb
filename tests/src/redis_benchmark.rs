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

/// Connections of the figures, and of redis-benchmark when nothing is said.
const CLIENTS: u32 = 50;

/// Requests per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of SET.
    pub set: f64,
    /// Of GET.
    pub get: f64,
}

/// How redis-benchmark loads the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Of SET, and as many of GET.
    pub requests: u64,
    /// Connections.
    pub clients: u32,
    /// Requests under way per connection.
    pub pipeline: u32,
}

/// What it measured of one command.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figure {
    /// Requests per second.
    pub rate: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
}

/// What it measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Of SET.
    pub set: Figure,
    /// Of GET.
    pub get: Figure,
}

/// Runs SET and GET, so many of each, from 50 clients without pipelining, on the clients' core.
///
/// # Errors
/// As [`measure`].
pub fn run(
    client: &Namespace,
    server: SocketAddrV4,
    requests: u64,
    patience: Duration,
) -> anyhow::Result<Rates> {
    let load = Load { requests, clients: CLIENTS, pipeline: 1 };
    let figures = measure(client, server, load, patience)?;
    Ok(Rates { set: figures.set.rate, get: figures.get.rate })
}

/// Runs SET and GET on the clients' core.
///
/// # Errors
/// Without redis-benchmark, when the server fails it, or after `patience`.
pub fn measure(
    client: &Namespace,
    server: SocketAddrV4,
    load: Load,
    patience: Duration,
) -> anyhow::Result<Figures> {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let [requests, clients, pipeline] =
        [load.requests, load.clients.into(), load.pipeline.into()].map(|number: u64| number.to_string());
    let mut command = Command::new("redis-benchmark");
    command
        .args(["-h", &ip, "-p", &port, "-t", "set,get", "-n", &requests, "-c", &clients, "-P", &pipeline])
        .arg("--csv")
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

/// `"SET","51234.56","0.975","0.296","0.959",…`: rate, then average, least and median latency in milliseconds.
fn parse(text: &str) -> Option<Figures> {
    let figure = |test: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(',').map(|field| field.trim_matches('"'));
            let mut number = |skip| fields.nth(skip)?.parse::<f64>().ok();
            line.starts_with(&format!("\"{test}\"")).then_some(())?;
            Some(Figure { rate: number(1)?, p50_us: number(2)? * 1e3 })
        })
    };
    Some(Figures { set: figure("SET")?, get: figure("GET")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_are_found_in_the_table() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\"\n\
            \"SET\",\"51020.41\",\"0.5\",\"0.1\",\"0.875\"\n\"GET\",\"60000.00\",\"0.4\",\"0.1\",\"0.25\"\n";
        let set = Figure { rate: 51020.41, p50_us: 875.0 };
        let get = Figure { rate: 60000.0, p50_us: 250.0 };
        assert_eq!(parse(text), Some(Figures { set, get }));
        assert_eq!(parse("Could not connect\n"), None);
    }
}
