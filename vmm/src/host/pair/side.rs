//! The side thread: the protocol, and everything that waits.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tandem_logchan::ack::{AckFlags, AckState};
use tandem_logchan::backup::LogReceiver;
use tandem_logchan::primary::AckReceiver;
use tandem_logchan::transport::{Duplex, ReceiveHalf};
use vmm_sys_util::eventfd::EventFd;

use super::attention::Attention;
use super::beacon::Beacon;
use super::claims::Claims;
use super::clock::now;
use super::gated::{Exits, GateReceiver};
use super::lag::Lag;
use super::shared::{News, Order, Shared};
use super::status::Board;
use super::{PairEnded, PairError, host};
use crate::host::config::DiskConfig;
use crate::host::config::MacAddress;
use crate::host::io::disk::Disks;
use crate::host::io::pump::Epoll;
use crate::host::priority::run_ahead;
use crate::host::shutdown::Shutdown;
use crate::host::tap::rarp_announcement;
use crate::host::vcpu::inputs::InputSource;
use crate::role::action::{Action, Actions, HaltReason, Report};
use crate::role::event::{Ack, Event};
use crate::role::side::State;
use crate::role::{Moment, Side};

mod over;

mod release;

mod wait;

/// How many times a side that goes live announces its addresses.
const ANNOUNCEMENTS: usize = 3;

const BEACON: u64 = 1 << 32;
const WAKE: u64 = BEACON + 1;
const SHUTDOWN: u64 = BEACON + 2;

/// This side's end of the log channel.
pub(super) enum Channel {
    /// A primary hears acks.
    Acks(AckReceiver<Box<dyn ReceiveHalf>>),
    /// A backup hears the log.
    Log(LogReceiver<Box<dyn Duplex>>),
    /// It is over.
    Closed,
}

/// Everything that the side thread owns.
pub(super) struct SideThread {
    pub(super) side: Side,
    pub(super) channel: Channel,
    /// The generation of the channel.
    pub(super) generation: u64,
    /// `ack = "placed"`: log counts from when it lies in the backup's memory.
    pub(super) placed: bool,
    pub(super) acks: Option<Arc<AckState>>,
    pub(super) shared: Arc<Shared>,
    pub(super) beacon: Beacon,
    pub(super) claims: Claims,
    /// Whether the machine takes inputs from this host.
    pub(super) accepting: Arc<AtomicBool>,
    pub(super) gate: GateReceiver,
    pub(super) exits: Exits,
    /// For a backup that goes live.
    pub(super) disks: Vec<DiskConfig>,
    pub(super) completions: Option<InputSource>,
    pub(super) macs: Vec<MacAddress>,
    pub(super) board: Arc<Board>,
    pub(super) shutdown: Shutdown,
    pub(super) wake: Arc<EventFd>,
    pub(super) hand_over: Arc<AtomicBool>,
}

/// The thread's own bookkeeping.
struct Loop {
    s: SideThread,
    epoll: Epoll,
    attention: Attention,
    /// Number of the front output at the gate, once it is bound.
    bound: Option<u64>,
    /// News that wait until all outputs before them have left.
    held_news: Option<News>,
    /// When log up to a frame came in, or was sent.
    lag: Lag,
    executed: u64,
    /// The progress that the primary was last told of beside the acks on receipt.
    told: u64,
    sent: u64,
    log_full: bool,
    leaving: bool,
    ended: Option<PairEnded>,
}

/// Runs the side until it ends. `actions` are those that its role began with.
pub(super) fn run(thread: SideThread, actions: &Actions) -> Result<PairEnded, PairError> {
    let epoll = Epoll::new().map_err(host("make an epoll set"))?;
    let add = |fd, token| epoll.add(fd, token).map_err(host("wait for a descriptor"));
    add(thread.beacon.as_raw_fd(), BEACON)?;
    add(thread.wake.as_raw_fd(), WAKE)?;
    add(thread.shutdown.as_raw_fd(), SHUTDOWN)?;
    let mut this = Loop {
        s: thread,
        epoll,
        attention: Attention::default(),
        bound: None,
        held_news: None,
        lag: Lag::new(),
        executed: 0,
        told: 0,
        sent: 0,
        log_full: false,
        leaving: false,
        ended: None,
    };
    this.watch_descriptors()?;
    run_ahead();
    this.perform(actions);
    while this.ended.is_none() {
        let readable = this.wait()?;
        if readable {
            this.take_descriptors()?;
        }
        this.take_news();
        this.take_progress();
        this.take_answers();
        let now = now();
        if this.s.side.deadline().is_some_and(|deadline| deadline <= now) {
            this.on(now, Event::Tick);
        }
        this.release();
        if this.s.board.is_due(now) {
            this.show(false);
        }
    }
    this.s.exits.terminal.flush();
    this.show(true);
    Ok(this.ended.unwrap_or(PairEnded::Failed))
}

impl Loop {
    /// The channel's wait also ends when one of the other descriptors is readable.
    fn watch_descriptors(&mut self) -> Result<(), PairError> {
        // SAFETY: duplicates a descriptor that is open.
        let fd = unsafe { libc::fcntl(self.epoll.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 {
            return Err(host("watch descriptors")(std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        match &mut self.s.channel {
            Channel::Acks(acks) => acks.watch(fd)?,
            Channel::Log(log) => log.watch(fd)?,
            Channel::Closed => {}
        }
        Ok(())
    }

    fn on(&mut self, now: Moment, event: Event) {
        let before = self.s.side.state();
        let actions = self.s.side.on(now, event);
        // Before anybody is told that the gate is shut.
        self.publish_lease();
        self.perform(&actions);
        let after = self.s.side.state();
        if before != after {
            tracing::info!(from = ?before, to = ?after, generation = self.s.side.generation(), "role");
        }
    }

    /// `waited`: this thread was waiting for it.
    fn take_ack(&mut self, ack: &tandem_logchan::ack::Ack, waited: bool) {
        // The protocol must have heard that it was sent.
        self.take_sent();
        let now = now();
        if ack.flags.contains(AckFlags::DIVERGED) {
            tracing::warn!("the backup says that it diverged");
        }
        // The oldest frame that is not executed yet has been on its way since it was sent.
        let lag = self.lag.executed(ack.executed.sequence, now);
        self.s.board.lag(lag);
        let sent = Moment::from_nanos(ack.echo);
        if !self.s.placed {
            self.s.gate.delays.acknowledged(ack.received, sent, waited.then_some(now), &self.s.shared.marks);
        }
        let ack = Ack {
            generation: self.s.generation,
            received: ack.received,
            executed: ack.executed.sequence,
            lag,
            digest: ack.executed.digest,
            echo: (ack.echo != 0).then(|| Moment::from_nanos(ack.echo)),
        };
        if let Some(actions) = self.s.side.on_ack(now, &ack) {
            self.perform(&actions);
        }
        self.publish_lease();
        self.release_acknowledged();
    }

    fn take_descriptors(&mut self) -> Result<(), PairError> {
        let mut ready = [0; 16];
        let tokens = self.epoll.wait(&mut ready, 0).map_err(host("wait"))?;
        for &token in tokens {
            match token {
                BEACON => {
                    while let Some(beat) = self.s.beacon.receive() {
                        self.s.board.heard(now());
                        self.take_sent();
                        self.on(now(), Event::Heartbeat(beat));
                    }
                }
                WAKE => {
                    // Its count says nothing; what there is to do is looked for anyway.
                    let _ = self.s.wake.read();
                    if self.s.hand_over.swap(false, Ordering::AcqRel) {
                        self.on(now(), Event::HandOver);
                    }
                }
                SHUTDOWN if !self.leaving => {
                    self.leaving = true;
                    self.epoll.remove(self.s.shutdown.as_raw_fd());
                    self.on(now(), Event::Leave);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn take_news(&mut self) {
        let news = self.s.shared.news();
        for item in self.held_news.take().into_iter().chain(news) {
            // All outputs made before must have left, or wait for an ack that will not come. Disk requests must be done: the other
            // side issues those again whose completion is not in the log, and nothing of ours may come after that.
            let waits = matches!(item, News::Stopped(_) | News::Ended(_));
            let left = self.s.gate.front().is_none() && self.s.exits.disks_are_idle();
            if waits && self.s.accepting.load(Ordering::Relaxed) && !left {
                self.held_news = Some(item);
                continue;
            }
            let now = now();
            match item {
                News::Stopped(sequence) => self.on(now, Event::GuestStopped { sequence }),
                News::Ended(sequence) => {
                    self.on(now, Event::GuestEnded { sequence });
                    self.take_progress();
                }
                News::Drained => self.take_progress(),
                News::Diverged(divergence) => {
                    if let Channel::Log(log) = &mut self.s.channel {
                        let _ = log.acknowledge(AckFlags::DIVERGED).and_then(|()| log.push());
                    }
                    self.s.board.note(format!("diverged at point {}", divergence.position));
                    self.on(now, Event::Diverged(divergence));
                }
                News::Failed => self.ended = Some(PairEnded::Failed),
            }
        }
    }

    fn take_sent(&mut self) {
        let sent = self.s.acks.as_ref().map_or(0, |acks| acks.sent());
        if sent != self.sent {
            self.sent = sent;
            let now = now();
            self.lag.begins(sent, now);
            self.on(now, Event::Sent { sequence: sent });
        }
    }

    fn take_progress(&mut self) {
        self.take_sent();
        if self.s.acks.is_some() {
            let full = self.s.shared.log_full.load(Ordering::Relaxed);
            if full != self.log_full {
                self.log_full = full;
                self.on(now(), if full { Event::LogFull } else { Event::LogFree });
            }
        }
        let executed = self.s.board.executed();
        if executed.sequence != self.executed {
            self.executed = executed.sequence;
            let now = now();
            let lag = self.lag.executed(executed.sequence, now);
            self.s.board.lag(lag);
            self.on(now, Event::Executed { sequence: executed.sequence, lag, digest: executed.digest });
        }
    }

    fn take_answers(&mut self) {
        while let Some((generation, verdict)) = self.s.claims.answer() {
            tracing::info!(generation, ?verdict, "the arbiter answered");
            self.on(now(), Event::Verdict { generation, verdict });
        }
    }

    fn show(&mut self, ended: bool) {
        if self.s.board.distributions_are_due(now()) || ended {
            self.s.board.delays(self.s.gate.delays.told());
        }
        self.s.board.show(&self.s, ended);
    }

    fn perform(&mut self, actions: &Actions) {
        for action in actions {
            tracing::trace!(?action, "action");
            match action {
                Action::SendHeartbeat(beat) => {
                    self.s.beacon.send(&beat);
                    self.tell_progress();
                }
                // Sent by the receiver itself, on receipt.
                Action::SendAck(_) => {}
                // The handshake has been its welcome; the log begins with the facts of the boot.
                Action::Welcome { .. } => {}
                Action::StartGuest => {
                    self.accept(matches!(self.s.side.state(), State::Primary | State::Live | State::Solo));
                    self.s.shared.give(Order::Run);
                }
                Action::Claim { generation } => {
                    tracing::info!(generation, "asking the arbiter");
                    let wake = Arc::clone(&self.s.wake);
                    self.s.claims.ask(generation, move || {
                        // The count cannot overflow.
                        let _ = wake.write(1);
                    });
                }
                Action::StopGuest => self.s.shared.give(Order::Stop),
                Action::ResumeGuest => {
                    // That it stood still is no news for the next time that it is asked to.
                    self.held_news = self.held_news.take().filter(|news| !matches!(news, News::Stopped(_)));
                    if self.s.shared.order() == Order::Stop {
                        self.s.shared.give(Order::Run);
                    }
                }
                // The vCPU thread stalls by itself when the log is full.
                Action::Stall(_) => {}
                Action::Throttle(level) => self.s.shared.throttle.store(level, Ordering::Relaxed),
                Action::CloseChannel => self.close_channel(),
                Action::GoLive { generation } => self.go_live(generation),
                Action::RunAlone { generation } => {
                    tracing::info!(generation, "running on without a backup");
                    self.s.board.note(format!("won generation {generation}; unprotected"));
                    self.s.shared.give(Order::Alone);
                }
                Action::Halt(reason) => self.halt(reason),
                Action::Report(report) => self.report(&report),
            }
        }
    }

    /// The primary learns the lag even when nothing new comes in. With each heartbeat, not with each
    /// frame: a second ack would wake it a second time.
    fn tell_progress(&mut self) {
        if self.told != self.executed
            && let Channel::Log(log) = &mut self.s.channel
        {
            self.told = self.executed;
            // Queued: a loss shows in the next wait.
            let _ = log.acknowledge(AckFlags::default());
        }
    }

    fn accept(&self, inputs: bool) {
        self.s.accepting.store(inputs, Ordering::Release);
    }

    fn go_live(&mut self, generation: u64) {
        tracing::info!(generation, "going live");
        self.s.board.note(format!("took over in generation {generation}"));
        if let Some(completions) = self.s.completions.take() {
            match Disks::start(&self.s.disks, completions, Arc::clone(&self.s.shared.lease)) {
                Ok(disks) => self.s.exits.disks = Some(Arc::new(disks)),
                // The guest sees its disks fail; its memory is still worth more than nothing.
                Err(error) => tracing::error!(%error, "the disks cannot be opened"),
            }
        }
        self.accept(true);
        self.s.shared.give(Order::Alone);
        for _ in 0..ANNOUNCEMENTS {
            for (tap, mac) in self.s.exits.taps.iter().zip(&self.s.macs) {
                if let Err(error) = tap.write_packet(&rarp_announcement(*mac)) {
                    tracing::warn!(%error, "the machine's address could not be announced");
                }
            }
        }
    }

    fn halt(&mut self, reason: HaltReason) {
        self.s.shared.give(Order::Halt);
        self.accept(false);
        tracing::info!(?reason, "halted");
        self.s.board.note(format!("{reason:?}"));
        self.ended = Some(PairEnded::Halted(reason));
    }

    fn report(&mut self, report: &Report) {
        match report {
            Report::Suspects(why) => {
                tracing::warn!(?why, "the peer is taken for lost");
                self.s.board.note(format!("peer lost: {why:?}"));
            }
            Report::ArbiterUnreachable { generation } => {
                tracing::warn!(generation, "the arbiter cannot be reached: outputs wait until it can");
                self.s.board.note(format!("waiting for the arbiter, generation {generation}"));
            }
            Report::Diverged(divergence) => tracing::error!(?divergence, "this backup diverged"),
            Report::NoPeer => tracing::warn!("there is nobody to hand over to"),
        }
    }
}
