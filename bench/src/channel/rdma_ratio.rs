//! RDMA's ack round trip against TCP's, from tests/rdma/bench: both over one soft RoCE link, under virtme-ng.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Relative to the checkout, which is where `make` runs this.
const BENCH: &str = "tests/rdma/bench";

/// What the script's last line says, with the ratio in it.
///
/// # Errors
/// Why there is none.
pub(super) fn measure(asked: bool) -> Result<(f64, Value), String> {
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
    let told: Value = serde_json::from_str(last).map_err(|_| format!("{BENCH} says no JSON: {last}"))?;
    match told["rdma_over_tcp_rtt"].as_f64() {
        Some(ratio) => Ok((ratio, told)),
        None => Err(format!("{BENCH} says no rdma_over_tcp_rtt: {last}")),
    }
}
