//! Soft RoCE on both ends of the log's cable.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::{Host, Lab};
use crate::process::{Launch, Process};

/// An RDMA device on each host, in the kernel's own soft RoCE (module `rdma_rxe`); removed when dropped.
#[derive(Debug)]
pub struct SoftRoce(());

/// Devices are seen from all namespaces, so their names are for one lab at a time.
const fn device(host: Host) -> &'static str {
    match host {
        Host::Primary => "rxe-p",
        Host::Backup => "rxe-b",
    }
}

impl SoftRoce {
    pub(crate) const fn new() -> Self {
        Self(())
    }

    /// New devices on both hosts: soft RoCE's management queue does not survive a link that went down while it sent,
    /// and one host's device may have been removed.
    ///
    /// # Errors
    /// Without the kernel module or the program `rdma` of iproute2.
    pub fn renew(&self, lab: &Lab) -> anyhow::Result<()> {
        [Host::Primary, Host::Backup].into_iter().try_for_each(|host| self.renew_on(lab, host))
    }

    /// A new device on one host.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn renew_on(&self, lab: &Lab, host: Host) -> anyhow::Result<()> {
        let name = device(host);
        // There may be none.
        let _ = Command::new("rdma").args(["link", "del", name]).output();
        let add = ["rdma", "link", "add", name, "type", "rxe", "netdev", "log"];
        let output = Command::new("ip").args(["netns", "exec", lab.host(host).name()]).args(add).output();
        let output = output.context("cannot run ip: install iproute2")?;
        if !output.status.success() {
            bail!("{}: {}", add.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Begins to remove the device of a host: the process ends when the kernel has done it.
    ///
    /// # Errors
    /// When `rdma` cannot be started.
    pub fn remove(&self, host: Host) -> anyhow::Result<Process> {
        Launch::new("removal", Path::new("rdma")).args(["link", "del", device(host)]).start()
    }
}

impl Drop for SoftRoce {
    fn drop(&mut self) {
        for host in [Host::Primary, Host::Backup] {
            let _ = Command::new("rdma").args(["link", "del", device(host)]).output();
        }
    }
}
