//! Status for the control socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tandem_logchan::ack::AckState;
use tandem_logchan::progress::{Executed, Progress};
use vmm_sys_util::eventfd::EventFd;

use super::clock::now;
use super::shared::Shared;
use super::side::{Channel, SideThread};
use crate::host::config::Config;
use crate::host::control::{Lag, OutputDelay, Peer, Role, Status, StatusSource};
use crate::host::lock;
use crate::host::vcpu::counters::LogRates;
use crate::role::Moment;
use crate::role::side::State;

/// How often the status is renewed, in nanoseconds.
const INTERVAL: u64 = 50_000_000;

/// How often the distributions in it are, while nobody asks: to read quantiles off takes a thousand times as long as the rest.
const DISTRIBUTIONS: u64 = 1_000_000_000;

/// What the operator sees. Written by the side thread, read by the control thread.
pub(super) struct Board {
    status: Mutex<Status>,
    own: Mutex<Own>,
    shared: Arc<Shared>,
    /// A backup's progress.
    progress: OnceLock<Arc<Progress>>,
    /// What a primary's backup has acknowledged.
    acks: OnceLock<Arc<AckState>>,
    hand_over: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    /// Somebody has asked since the distributions were renewed.
    asked: AtomicBool,
}

/// The side thread's own bookkeeping.
struct Own {
    shown: Moment,
    distributions: Moment,
    started: Moment,
    heard: Option<Moment>,
    note: Option<String>,
    lag: u64,
    rates: LogRates,
    patience: u64,
}

impl Board {
    pub(super) fn new(
        first: Status,
        shared: Arc<Shared>,
        hand_over: Arc<AtomicBool>,
        wake: Arc<EventFd>,
        patience: u64,
    ) -> Self {
        let own = Own {
            shown: Moment::ZERO,
            distributions: Moment::ZERO,
            started: now(),
            heard: None,
            note: None,
            lag: 0,
            rates: LogRates::new(now().as_nanos()),
            patience,
        };
        Self {
            status: Mutex::new(first),
            own: Mutex::new(own),
            shared,
            progress: OnceLock::new(),
            acks: OnceLock::new(),
            hand_over,
            wake,
            asked: AtomicBool::new(false),
        }
    }

    /// From now on the replay's progress is part of the status.
    pub(super) fn follow(&self, progress: Arc<Progress>) {
        // Set once, when the channel is there.
        let _ = self.progress.set(progress);
    }

    /// From now on the backup's acknowledgements are part of the status.
    pub(super) fn lead(&self, acks: Arc<AckState>) {
        // Set once, when the channel is there.
        let _ = self.acks.set(acks);
    }

    pub(super) fn heard(&self, at: Moment) {
        lock(&self.own).heard = Some(at);
    }

    pub(super) fn note(&self, note: String) {
        lock(&self.own).note = Some(note);
    }

    pub(super) fn lag(&self, nanos: u64) {
        lock(&self.own).lag = nanos;
    }

    /// How far the replay of this side, or of the peer, has come.
    pub(super) fn executed(&self) -> Executed {
        self.progress.get().map_or_else(Executed::default, |progress| progress.load())
    }

    pub(super) fn is_due(&self, now: Moment) -> bool {
        now.since(lock(&self.own).shown) >= INTERVAL
    }

    /// Whether to renew the distributions: rarely, unless somebody looks.
    pub(super) fn distributions_are_due(&self, now: Moment) -> bool {
        let mut own = lock(&self.own);
        let due = self.asked.swap(false, Ordering::Relaxed) || now.since(own.distributions) >= DISTRIBUTIONS;
        if due {
            own.distributions = now;
        }
        due
    }

    /// How long outputs take, from now on.
    pub(super) fn delays(&self, output_delay: Option<OutputDelay>) {
        lock(&self.status).output_delay = output_delay;
    }

    /// Renews the status.
    pub(super) fn show(&self, side: &SideThread, ended: bool) {
        let now = now();
        let mut own = lock(&self.own);
        own.shown = now;
        let mut status = lock(&self.status);
        self.shared.counters.show(&mut status, &mut own.rates, now.as_nanos());
        status.role = if ended { Role::Halted } else { role(side.side.state()) };
        status.generation = side.side.generation();
        status.note.clone_from(&own.note);
        status.uptime_ms = now.since(own.started) / 1_000_000;
        if let Some(peer) = &mut status.peer {
            peer.last_heard_ms = own.heard.map(|at| now.since(at) / 1_000_000);
            peer.alive = own.heard.is_some_and(|at| now.since(at) < own.patience);
        }
        status.lag = self.lag_now(&own, side);
        status.frames = self.shared.sent.load(Ordering::Relaxed);
        status.held_back_ms = self.shared.paused.load(Ordering::Relaxed) as f64 / 1e6;
        status.held_outputs = side.side.gate().held();
    }

    /// A primary knows its backup's lag from the acks, a backup its own.
    fn lag_now(&self, own: &Own, side: &SideThread) -> Option<Lag> {
        let entries = match &side.channel {
            Channel::Acks(_) => self.acks.get()?.lag(),
            Channel::Log(receiver) => {
                receiver.received().saturating_sub(self.progress.get()?.load().sequence)
            }
            Channel::Closed => return None,
        };
        Some(Lag { ms: own.lag as f64 / 1e6, entries })
    }
}

const fn role(state: State) -> Role {
    match state {
        State::Solo => Role::Solo,
        State::Joining => Role::Joining,
        State::Primary => Role::Primary,
        State::Backup => Role::Backup,
        State::Arbitrating => Role::Arbitrating,
        State::Live => Role::Live,
        State::Diverged | State::Halted => Role::Halted,
    }
}

impl StatusSource for Board {
    fn status(&self) -> Status {
        self.asked.store(true, Ordering::Relaxed);
        lock(&self.status).clone()
    }

    fn failover(&self) -> Result<String, String> {
        let role = lock(&self.status).role;
        if !matches!(role, Role::Primary | Role::Backup) {
            return Err(format!("this side is {}: there is nobody to hand over to", role.name()));
        }
        self.hand_over.store(true, Ordering::Release);
        self.wake.write(1).map_err(|e| format!("the side cannot be woken: {e}"))?;
        Ok("handing over; ask the other side for its status".to_owned())
    }
}

/// The first status, before anything happened.
pub(super) fn first(config: &Config, role: Role, peer: String) -> Status {
    Status { peer: Some(Peer { address: peer, ..Peer::default() }), ..Status::of(config, role) }
}
