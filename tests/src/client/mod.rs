//! The checking client: load on a Redis server over several connections, every acknowledged change
//! remembered and in the end asked for.
//!
//! Some connections are *busy*: they keep so many requests without a reply at all times. When the server
//! falls silent they send nothing, and go on when their TCP retransmits. Others are *paced*: they send a
//! request every few milliseconds, answered or not, as users do; they notice first that somebody is there
//! again.

mod clock;
mod connection;
mod ledger;
mod outage;
mod read_back;
mod resp;
mod within;
mod worker;

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

pub use clock::{ClockReport, ClockWatch};
pub use ledger::{Kind, Ledger, Violation};
pub use resp::{NotResp, Parser, Reply, request};
pub use within::{Seen, Within};

use crate::lab::Namespace;

/// What load to make.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub server: SocketAddrV4,
    /// Busy connections.
    pub busy: usize,
    /// Requests without a reply on each busy connection.
    pub depth: usize,
    /// Paced connections.
    pub paced: usize,
    /// From one request of a paced connection to the next.
    pub pace: Duration,
    /// Decides which requests are sent.
    pub seed: u64,
    /// How long the server may be silent, at the end and while it is read back.
    pub patience: Duration,
    /// Pin the client to this core.
    pub core: Option<usize>,
    /// Replies that were under way when a host died come in within this; nobody takes over as fast.
    pub stragglers: Duration,
}

impl Load {
    /// A few connections of either sort, to a server.
    #[must_use]
    pub const fn new(server: SocketAddrV4, seed: u64) -> Self {
        Self {
            server,
            busy: 6,
            depth: 1,
            paced: 2,
            pace: Duration::from_millis(10),
            seed,
            patience: Duration::from_secs(5),
            core: None,
            stragglers: Duration::from_millis(10),
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// INCR and SET that were acknowledged.
    pub acked: u64,
    /// Of these, how many the server did not have in the end.
    pub lost: u64,
    /// Replies and values that are not what they must be; the first few.
    pub violations: Vec<Violation>,
    /// How many there were in all.
    pub violation_count: u64,
    /// Connections that ended under us.
    pub connections_lost: u64,
    /// Why the server could not be read back, if so.
    pub unreachable: Option<String>,
    /// When replies came.
    replies: Vec<Instant>,
    /// As in [`Load`].
    stragglers: Duration,
    /// What the client was told.
    ledgers: Vec<Ledger>,
}

/// Violations kept word by word.
const KEPT: usize = 8;

impl Report {
    fn keep(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < KEPT {
            self.violations.push(violation);
        }
    }

    /// Reads every key back from a server that must have all that was acknowledged to the client, and adds what is wrong.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn read_back(&mut self, server: SocketAddrV4, patience: Duration) -> anyhow::Result<()> {
        for violation in read_back::read_back(&self.ledgers, server, patience)? {
            self.lost += violation.lost;
            self.keep(violation);
        }
        Ok(())
    }

    /// From `event` (the kill of the server's host, say) to the first reply of whoever serves after it;
    /// `None` if none came.
    #[must_use]
    pub fn outage(&self, event: Instant) -> Option<Duration> {
        outage::outage(&self.replies, event, self.stragglers)
    }

    /// Everything acknowledged is there, and every reply was right.
    #[must_use]
    pub const fn clean(&self) -> bool {
        self.lost == 0 && self.violation_count == 0 && self.unreachable.is_none()
    }
}

/// What worker and owner share.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    abandon: AtomicBool,
    acked: AtomicU64,
    epoch: Instant,
    /// For each connection when it last got a reply, in nanoseconds since the epoch; 0: never.
    replied: Vec<AtomicU64>,
}

/// A running client.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<anyhow::Result<Report>>>,
}

impl Client {
    /// Starts it, inside a namespace if one is given.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(namespace: Option<&Namespace>, load: Load) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            acked: AtomicU64::new(0),
            epoch: Instant::now(),
            replied: (0..load.busy + load.paced).map(|_| AtomicU64::new(0)).collect(),
        });
        let theirs = Arc::clone(&shared);
        let start = || {
            std::thread::Builder::new().name("client".to_owned()).spawn(move || worker::work(&load, &theirs))
        };
        let worker = match namespace {
            // A new thread begins in the namespace of the one that starts it.
            Some(namespace) => namespace.enter(start)?,
            None => start(),
        };
        Ok(Self { shared, worker: Some(worker.context("cannot start the client's thread")?) })
    }

    /// INCR and SET acknowledged until now.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Waits until every connection has had a reply after `since`.
    ///
    /// # Errors
    /// When one has not within `patience`, or the client has ended.
    pub fn wait_for_replies(&self, since: Instant, patience: Duration) -> anyhow::Result<()> {
        let since = since.saturating_duration_since(self.shared.epoch).as_nanos() as u64;
        let deadline = Instant::now() + patience;
        loop {
            let silent = self.shared.replied.iter().filter(|at| at.load(Ordering::Relaxed) <= since).count();
            if silent == 0 {
                return Ok(());
            }
            if self.worker.as_ref().is_none_or(JoinHandle::is_finished) {
                bail!("the client has ended");
            }
            if Instant::now() >= deadline {
                bail!(
                    "{silent} of {} connections had no reply for {patience:.1?}",
                    self.shared.replied.len()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends nothing new, waits for the replies that are due, reads every key back, and tells what it found.
    ///
    /// # Errors
    /// When the client itself failed; a server that fails is in the report.
    pub fn finish(mut self) -> anyhow::Result<Report> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join()
    }

    /// Stops at once and reads nothing back: for a server that is known to be gone.
    ///
    /// # Errors
    /// When the client itself failed.
    pub fn abandon(mut self) -> anyhow::Result<Report> {
        self.shared.abandon.store(true, Ordering::SeqCst);
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Report> {
        let worker = self.worker.take().context("the client was stopped before")?;
        worker.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::SeqCst);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
