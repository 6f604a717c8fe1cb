//! This machine's own cards in the lab. Their cables may leave the machine: the other host is another machine then, at the far end.

use std::io::Write as _;
use std::process::Command;

use anyhow::{Context, ensure};

use super::namespace::ip;
use super::{BACKUP, Host, Lab, Namespace, PRIMARY};

/// A card that the lab has on loan as the log's end on a host. It comes back with the addresses that it had.
#[derive(Debug)]
pub(super) struct Lent {
    card: String,
    host: Host,
    addresses: Vec<String>,
}

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
        move_card(card, self.host(host))?;
        self.plug_in(card, host)
    }

    /// A card that was moved is the log's end on that host.
    fn plug_in(&self, card: &str, host: Host) -> anyhow::Result<()> {
        let address = match host {
            Host::Primary => PRIMARY,
            Host::Backup => BACKUP,
        };
        self.host(host)
            .batch(&format!("link set {card} name log\naddress add {address}/24 dev log\nlink set log up\n"))
    }

    /// Takes two cards of this machine, with a cable between them, for the log's; they come back when the lab goes.
    ///
    /// # Errors
    /// When there are no two such cards.
    pub fn log_crosses(&mut self, cards: [&str; 2]) -> anyhow::Result<()> {
        ensure!(cards[0] != cards[1], "the log's cable has two ends: name two cards");
        self.primary.batch("link delete log\n")?;
        for (card, host) in cards.into_iter().zip([Host::Primary, Host::Backup]) {
            let addresses = addresses(card)?;
            move_card(card, self.host(host))?;
            self.lent.push(Lent { card: card.to_owned(), host, addresses });
            self.plug_in(card, host)?;
        }
        Ok(())
    }

    /// Gives back what was lent.
    pub(super) fn give_back(&mut self) {
        for lent in std::mem::take(&mut self.lent) {
            if let Err(error) = self.give_back_one(&lent) {
                let _ = writeln!(std::io::stderr(), "{} did not come back as it was: {error:#}", lent.card);
            }
        }
    }

    fn give_back_one(&self, Lent { card, host, addresses }: &Lent) -> anyhow::Result<()> {
        // It still has its name if it was not plugged in.
        let _ = self.host(*host).batch(&format!("link set log down\nlink set log name {card}\n"));
        self.host(*host).batch(&format!("link set {card} netns {}\n", std::process::id()))?;
        ip(&["link", "set", card, "up"])?;
        addresses.iter().try_for_each(|address| ip(&["address", "add", address, "dev", card]))
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

/// The addresses of a card, each with the length of its prefix; not those that the link gives itself.
fn addresses(card: &str) -> anyhow::Result<Vec<String>> {
    let output = Command::new("ip").args(["-o", "address", "show", "dev", card, "scope", "global"]).output();
    let output = output.context("cannot run ip: install iproute2")?;
    ensure!(output.status.success(), "this machine has no card {card}");
    let text = String::from_utf8_lossy(&output.stdout);
    // "2: eth0    inet 10.0.0.2/24 brd …"
    Ok(text.lines().filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned)).collect())
}

fn move_card(card: &str, namespace: &Namespace) -> anyhow::Result<()> {
    ip(&["link", "set", card, "netns", namespace.name()])
        .with_context(|| format!("this machine has no {card}: it was not started with a cable"))
}
