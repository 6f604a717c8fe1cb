//! RDMA devices on both ends of the log's cable.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::{Host, Lab};
use crate::process::{Launch, Process};

/// An RDMA device on each host: the one that its card brings along, or one of the kernel's own soft RoCE (module `rdma_rxe`), which is
/// removed when dropped.
#[derive(Debug)]
pub struct RdmaDevices(());

/// Devices are seen from all namespaces, so their names are for one lab at a time.
const fn device(host: Host) -> &'static str {
    match host {
        Host::Primary => "rxe-p",
        Host::Backup => "rxe-b",
    }
}

impl RdmaDevices {
    pub(crate) const fn new() -> Self {
        Self(())
    }

    /// New devices on both hosts, where they are soft RoCE: its management queue does not survive a link that went down while it sent,
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
        if brought(lab, host)?.is_some() {
            return Ok(());
        }
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
    /// When the device is the card's own, or `rdma` cannot be started.
    pub fn remove(&self, lab: &Lab, host: Host) -> anyhow::Result<Process> {
        if let Some(own) = brought(lab, host)? {
            bail!("{own} is no soft RoCE: it is not taken away");
        }
        Launch::new("removal", Path::new("rdma")).args(["link", "del", device(host)]).start()
    }

    /// What the log goes over, for a human.
    ///
    /// # Errors
    /// When `rdma` cannot be started.
    pub fn names(&self, lab: &Lab) -> anyhow::Result<[String; 2]> {
        let name = |host| {
            Ok::<_, anyhow::Error>(
                brought(lab, host)?.unwrap_or_else(|| format!("{} (soft RoCE)", device(host))),
            )
        };
        Ok([name(Host::Primary)?, name(Host::Backup)?])
    }
}

/// The RDMA device that the card of the log's end brought along.
fn brought(lab: &Lab, host: Host) -> anyhow::Result<Option<String>> {
    let show =
        Command::new("ip").args(["netns", "exec", lab.host(host).name(), "rdma", "link", "show"]).output();
    let show = show.context("cannot run ip: install iproute2")?;
    if !show.status.success() {
        bail!("rdma link show: {}", String::from_utf8_lossy(&show.stderr).trim());
    }
    Ok(other_than(device(host), &String::from_utf8_lossy(&show.stdout)).map(str::to_owned))
}

/// Of the links that `rdma link show` lists, the device at the log's end that is not ours. Those whose card is in another
/// namespace are listed without it.
fn other_than<'a>(ours: &str, links: &'a str) -> Option<&'a str> {
    links.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let device = words.nth(1)?.split('/').next()?;
        let at_the_log =
            words.any(|word| word == "netdev") && line.split_whitespace().next_back() == Some("log");
        (at_the_log && device != ours).then_some(device)
    })
}

impl Drop for RdmaDevices {
    fn drop(&mut self) {
        for host in [Host::Primary, Host::Backup] {
            let _ = Command::new("rdma").args(["link", "del", device(host)]).output();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_brings_its_device_along() {
        let links = "link mlx5_0/1 state ACTIVE physical_state LINK_UP \n\
                     link mlx5_1/1 state ACTIVE physical_state LINK_UP netdev log \n\
                     link rxe-p/1 state ACTIVE physical_state LINK_UP netdev eth0 \n";
        assert_eq!(other_than("rxe-p", links), Some("mlx5_1"));
        assert_eq!(other_than("mlx5_1", links), None);
        assert_eq!(other_than("rxe-p", ""), None);
    }
}
