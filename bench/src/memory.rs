//! What a side takes beside the guest's RAM.

use anyhow::{Context, Result};

/// MiB that a side may take beside the guest's RAM.
pub(crate) const MEMORY: f64 = 64.0;

/// MiB of memory that a process has beside what it shares: a VM's RAM is a memfd.
pub(crate) fn memory_beside_the_guest(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    };
    let own = kib("RssAnon:").zip(kib("RssFile:")).with_context(|| format!("{path} does not tell"))?;
    Ok((own.0 + own.1) / 1024.0)
}
