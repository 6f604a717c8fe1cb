//! Figures over soft RoCE, under virtme-ng: RDMA's ack round trip against TCP's, from tests/rdma/bench, and the output delay of
//! pairs over RDMA, from tests/rdma/delay.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Relative to the checkout, which is where `make` runs this.
const BENCH: &str = "tests/rdma/bench";
const DELAY: &str = "tests/rdma/delay";

/// What a script says in its last line.
#[derive(Debug)]
pub(super) struct Told {
    script: &'static str,
    pub(super) all: Value,
}

impl Told {
    /// A figure, or why there is none.
    pub(super) fn figure(&self, name: &str) -> Result<f64, String> {
        let why = || self.all["reason"].as_str().unwrap_or("it does not say why");
        self.all[name].as_f64().ok_or_else(|| format!("{}: no {name}: {}", self.script, why()))
    }
}

/// `rdma_over_tcp_rtt`, `rdma_over_tcp_rtt_read`: the best that the config offers, and the best of acks by the backup; with the
/// configs that the two are of.
///
/// # Errors
/// Why there is nothing.
pub(super) fn round_trips(asked: bool) -> Result<Told, String> {
    run(asked, BENCH, "both transports over soft RoCE, under virtme-ng")
}

/// `output_delay_over_rdma_rtt_p50`, `output_delay_over_rdma_rtt_p99`.
///
/// # Errors
/// As [`round_trips`].
pub(super) fn output_delay(asked: bool) -> Result<Told, String> {
    run(asked, DELAY, "pairs over soft RoCE, under virtme-ng")
}

fn run(asked: bool, script: &'static str, what: &str) -> Result<Told, String> {
    if !asked {
        return Err(format!("not asked for: --rdma runs {script}, minutes under virtme-ng"));
    }
    if !Path::new(script).exists() {
        return Err(format!("there is no {script} here: run this in the checkout"));
    }
    eprintln!("{script}: {what}");
    let said = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let said = said.map_err(|error| format!("{script}: {error}"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let last = text.trim_end().lines().last().unwrap_or_default();
    if !said.status.success() {
        return Err(format!("{script}: {}; its last words: {last}", said.status));
    }
    let all: Value = serde_json::from_str(last).map_err(|_| format!("{script} says no JSON: {last}"))?;
    for line in text.trim_end().lines().filter(|line| *line != last) {
        println!("{line}");
    }
    Ok(Told { script, all })
}
