//! Cables that leave this machine: the other host is another machine, at the far end of a card's cable.

use anyhow::{Context, bail};

use super::{BACKUP, Host, Lab, Namespace, PRIMARY};

impl Lab {
    /// Makes a card of this machine the log's end on `host`.
    ///
    /// # Errors
    /// When there is no such card.
    pub fn log_leaves_by(&self, card: &str, host: Host) -> anyhow::Result<()> {
        self.primary.batch("link delete log\n")?;
        // What the lab does to the log's cable it does at both ends.
        let other = if host == Host::Primary { Host::Backup } else { Host::Primary };
        self.host(other).batch("link add log type dummy\n")?;
        let address = match host {
            Host::Primary => PRIMARY,
            Host::Backup => BACKUP,
        };
        let namespace = self.host(host);
        move_card(card, namespace)?;
        namespace
            .batch(&format!("link set {card} name log\naddress add {address}/24 dev log\nlink set log up\n"))
    }

    /// Makes a card of this machine the cable between the clients and the primary's host, for the primary's machine or
    /// for the machine of backup and clients.
    ///
    /// # Errors
    /// As [`Self::log_leaves_by`].
    pub fn clients_leave_by(&self, card: &str, host: Host) -> anyhow::Result<()> {
        self.client.batch("link delete to-p\n")?;
        let (namespace, name) = match host {
            Host::Primary => (&self.primary, "uplink"),
            Host::Backup => (&self.client, "to-p"),
        };
        move_card(card, namespace)?;
        namespace.batch(&format!("link set {card} name {name}\nlink set {name} master br0 up\n"))
    }
}

fn move_card(card: &str, namespace: &Namespace) -> anyhow::Result<()> {
    let status = std::process::Command::new("ip")
        .args(["link", "set", card, "netns", namespace.name()])
        .status()
        .context("cannot run ip: install iproute2")?;
    if !status.success() {
        bail!("this machine has no {card}: it was not started with a cable");
    }
    Ok(())
}
