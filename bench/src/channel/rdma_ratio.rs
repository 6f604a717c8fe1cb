//! RDMA's ack round trip against TCP's, from tests/rdma/bench: both over one soft RoCE link, under virtme-ng.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Relative to the checkout, which is where `make` runs this.
const BENCH: &str = "tests/rdma/bench";

/// What the script says.
#[derive(Debug)]
pub(super) struct Told {
    /// `rdma_over_tcp_rtt`, `rdma_over_tcp_rtt_read`: the best that the config offers, and the best of acks by the backup.
    pub(super) best: f64,
    pub(super) read: f64,
    /// All of its last line, with the configs that the two are of.
    pub(super) all: Value,
}

/// Runs the script.
///
/// # Errors
/// Why there is no figure.
pub(super) fn measure(asked: bool) -> Result<Told, String> {
    if !asked {
        return Err(format!("not asked for: --rdma runs {BENCH}, minutes under virtme-ng"));
    }
    if !Path::new(BENCH).exists() {
        return Err(format!("there is no {BENCH} here: run this in the checkout"));
    }
    eprintln!("{BENCH}: both transports over soft RoCE, under virtme-ng");
    let said = Command::new(BENCH).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let said = said.map_err(|error| format!("{BENCH}: {error}"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let last = text.trim_end().lines().last().unwrap_or_default();
    if !said.status.success() {
        return Err(format!("{BENCH}: {}; its last words: {last}", said.status));
    }
    let all: Value = serde_json::from_str(last).map_err(|_| format!("{BENCH} says no JSON: {last}"))?;
    let figure = |name: &str| {
        let why = all["reason"].as_str().unwrap_or(last);
        all[name].as_f64().ok_or_else(|| format!("{BENCH}: no {name}: {why}"))
    };
    for line in text.trim_end().lines().filter(|line| *line != last) {
        println!("{line}");
    }
    let (best, read) = (figure("rdma_over_tcp_rtt")?, figure("rdma_over_tcp_rtt_read")?);
    Ok(Told { best, read, all })
}
