//! The backup's host: another network namespace of this machine, or another virtme-ng machine at the other end of a cable.
//!
//! In QEMU's software emulation all CPUs of a machine take turns on one core, so that a pair on one such machine would
//! get half of it for each side. Two machines, each on a core of its own, are two hosts.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tandem_tests::config::Files;
use tandem_tests::lab::{BACKUP, Host, Lab};
use tandem_tests::side::Side;
use tandem_tests::timeline;
use tandem_vmm::host::control::Role;

use super::machine::{Machine, Shared, Sources, look};
use super::usage::Look;
use crate::report::Event;

/// Where the other machine takes orders, on the log's cable.
const ORDERS: SocketAddrV4 = SocketAddrV4::new(BACKUP, 7701);
/// The card that virtme-ng gave this machine.
const CARD: &str = "eth0";
/// For a machine to boot in software emulation and copy its files.
const BOOT: Duration = Duration::from_secs(90);

/// What the other machine can be told.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Start a backup of this VM.
    Start(Shared),
    /// Say how it is.
    Look,
    /// Wait until it runs the VM, and say what it logged on the way.
    GoLive,
    /// End it.
    End,
    /// End altogether.
    Leave,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    Look(Box<Look>),
    Events(Vec<Event>),
    Failed(String),
}

/// Where backups run.
#[derive(Debug)]
pub(crate) enum BackupHost {
    /// On this machine.
    Here(Option<Side>),
    /// On the other one.
    There(BufReader<TcpStream>),
}

impl BackupHost {
    /// The other machine, when it is up. The cable, `eth0`, becomes the log's in the lab.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn there(lab: &Lab) -> Result<Self> {
        lab.log_leaves_by(CARD, Host::Primary)?;
        let deadline = Instant::now() + BOOT;
        let stream = loop {
            let tried = lab
                .host(Host::Primary)
                .enter(|| TcpStream::connect_timeout(&ORDERS.into(), Duration::from_secs(2)))?;
            match tried {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("the backup's machine does not come up");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self::There(BufReader::new(stream)))
    }

    /// Starts the backup of the VM that has these files.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(
        &mut self,
        machine: &Machine,
        lab: &Lab,
        files: &Files,
        shared: &Shared,
    ) -> Result<()> {
        match self {
            Self::Here(side) => *side = Some(machine.start("backup", lab, Host::Backup, files)?),
            Self::There(_) => {
                self.ask(&Order::Start(shared.clone()))?;
            }
        }
        Ok(())
    }

    /// How it is.
    ///
    /// # Errors
    /// When it does not say.
    pub(crate) fn look(&mut self) -> Result<Look> {
        match self {
            Self::Here(Some(side)) => look(side),
            Self::Here(None) => bail!("there is no backup"),
            Self::There(_) => match self.ask(&Order::Look)? {
                Answer::Look(look) => Ok(*look),
                other => bail!("the backup's machine answers {other:?}"),
            },
        }
    }

    /// Waits until it runs the VM.
    ///
    /// # Errors
    /// When it never does.
    pub(crate) fn go_live(&mut self, patience: Duration) -> Result<Vec<Event>> {
        match self {
            Self::Here(Some(side)) => go_live(side, patience),
            Self::Here(None) => bail!("there is no backup"),
            Self::There(_) => match self.ask(&Order::GoLive)? {
                Answer::Events(events) => Ok(events),
                other => bail!("the backup's machine answers {other:?}"),
            },
        }
    }

    /// Ends the backup.
    pub(crate) fn end(&mut self) {
        match self {
            Self::Here(side) => *side = None,
            Self::There(_) => {
                // Its machine ends with this run at the latest.
                let _ = self.ask(&Order::End);
            }
        }
    }

    fn ask(&mut self, order: &Order) -> Result<Answer> {
        let Self::There(stream) = self else { bail!("the backup is on this machine") };
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        stream.get_mut().write_all(&line)?;
        let mut answer = String::new();
        stream.read_line(&mut answer).context("the backup's machine does not answer")?;
        match serde_json::from_str(&answer).context("the backup's machine answers nothing sensible")? {
            Answer::Failed(why) => bail!("on the backup's machine: {why}"),
            answer => Ok(answer),
        }
    }
}

impl Drop for BackupHost {
    fn drop(&mut self) {
        if let Self::There(_) = self {
            let _ = self.ask(&Order::Leave);
        }
    }
}

/// Takes orders on the backup's machine until it is told to leave.
///
/// # Errors
/// When it cannot be ordered.
pub(crate) fn serve(sources: Sources) -> Result<()> {
    let lab = Lab::new()?;
    lab.log_leaves_by(CARD, Host::Backup)?;
    let mut machine = Machine::new(sources)?;
    let listener = lab.host(Host::Backup).enter(|| TcpListener::bind(ORDERS))??;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let (mut lines, mut side) = (BufReader::new(stream), None);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let order: Order = serde_json::from_str(&line).context("an order that is none")?;
        if let Order::Leave = order {
            return Ok(());
        }
        let answer = obey(order, &lab, &mut machine, &mut side);
        let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        lines.get_mut().write_all(&line)?;
    }
}

fn obey(order: Order, lab: &Lab, machine: &mut Machine, side: &mut Option<Side>) -> Result<Answer> {
    match order {
        Order::Start(shared) => {
            *side = None;
            let files = machine.fresh(&shared)?;
            *side = Some(machine.start("backup", lab, Host::Backup, &files)?);
        }
        Order::Look => {
            let Some(side) = side else { bail!("there is no backup") };
            side.must_run()?;
            return Ok(Answer::Look(Box::new(look(side)?)));
        }
        Order::GoLive => {
            let Some(side) = side else { bail!("there is no backup") };
            return Ok(Answer::Events(go_live(side, Duration::from_secs(50))?));
        }
        Order::End | Order::Leave => *side = None,
    }
    Ok(Answer::Done)
}

/// Waits for the take-over. What was logged from the moment on when the peer was missed.
fn go_live(side: &mut Side, patience: Duration) -> Result<Vec<Event>> {
    side.wait_for_role(&[Role::Live], patience)?;
    let events = side.process.standard_error().map(timeline::read).unwrap_or_default();
    // The last pairing is what came before.
    let first =
        events.iter().rposition(|event| event.text.starts_with("paired")).map_or(0, |index| index + 1);
    let began = events.get(first).map(|event| event.at);
    let since = |at| began.and_then(|began| std::time::SystemTime::duration_since(&at, began).ok());
    Ok(events[first..]
        .iter()
        .map(|event| Event {
            ms: since(event.at).unwrap_or_default().as_secs_f64() * 1e3,
            text: event.text.clone(),
        })
        .collect())
}
