//! The backup of a pair: it receives the log, acknowledges, executes, and drops all outputs.

use super::Next;
use super::action::{Action, Actions, Suspicion};
use super::event::{Ack, Batch, Event, Heartbeat, Standing};
use super::lease::Promise;
use super::moment::Moment;
use super::silence::Silence;
use super::timing::Timing;

/// State of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backup {
    generation: u64,
    silence: Silence,
    promise: Promise,
    next_beat: Moment,
    progress: Progress,
    wants_hand_over: bool,
}

/// How far a backup has come with the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// The newest batch in memory.
    pub received: u64,
    /// The newest batch executed whole.
    pub executed: u64,
    /// How long that had waited, in nanoseconds.
    pub lag: u64,
    /// The divergence digest after it.
    pub digest: u64,
}

impl Progress {
    /// Has all been executed that was received?
    #[must_use]
    pub const fn drained(&self) -> bool {
        self.executed >= self.received
    }

    pub(super) fn on_executed(&mut self, sequence: u64, lag: u64, digest: u64) {
        if sequence >= self.executed {
            *self = Self { received: self.received, executed: sequence, lag, digest };
        }
    }
}

impl Backup {
    /// The primary's welcome came at `now`.
    pub(super) fn new(now: Moment, timing: &Timing, generation: u64) -> Self {
        Self {
            generation,
            silence: Silence::new(now, timing.silence(), timing.heartbeat),
            promise: Promise::new(timing),
            next_beat: now,
            progress: Progress::default(),
            wants_hand_over: false,
        }
    }

    /// The generation of the pair.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// How far it has come with the log.
    #[must_use]
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    pub(super) const fn promise(&self) -> &Promise {
        &self.promise
    }

    pub(super) const fn last_heard(&self) -> Moment {
        self.silence.last_heard()
    }

    /// A batch is in memory: the ack to send, on the shortest way. `None` if it is of another generation.
    pub(super) fn on_batch(&mut self, now: Moment, batch: &Batch) -> Option<Ack> {
        if batch.generation != self.generation {
            return None;
        }
        self.silence.heard(now);
        if let Some(stamp) = batch.stamp {
            self.promise.on_stamp(now, stamp);
        }
        self.progress.received = self.progress.received.max(batch.sequence);
        let Progress { received, executed, lag, digest } = self.progress;
        Some(Ack { generation: self.generation, received, executed, lag, digest, echo: self.promise.echo() })
    }

    pub(super) fn on(&mut self, now: Moment, event: Event, actions: &mut Actions) -> Next {
        match event {
            Event::Heartbeat(heartbeat) if heartbeat.generation == self.generation => {
                return self.on_heartbeat(now, &heartbeat);
            }
            Event::Batch(batch) => {
                if let Some(ack) = self.on_batch(now, &batch) {
                    actions.push(Action::SendAck(ack));
                }
            }
            Event::Executed { sequence, lag, digest } => self.progress.on_executed(sequence, lag, digest),
            Event::Diverged(divergence) => return Next::Diverge(divergence),
            Event::ChannelLost { generation, loss } if generation == self.generation => {
                return Next::Arbitrate(Suspicion::Channel(loss));
            }
            Event::HandOver => {
                self.wants_hand_over = true;
                self.next_beat = now;
            }
            Event::Leave => return Next::Leave,
            Event::GuestEnded { .. } => return Next::End,
            _ => {}
        }
        Next::Stay
    }

    fn on_heartbeat(&mut self, now: Moment, heartbeat: &Heartbeat) -> Next {
        match heartbeat.standing {
            Standing::HandedOver { sequence } if self.progress.received >= sequence => {
                return Next::Arbitrate(Suspicion::HandedOver);
            }
            Standing::Claiming => return Next::Arbitrate(Suspicion::PeerClaims),
            _ => {
                self.silence.heard(now);
                if self.promise.on_stamp(now, heartbeat.stamp) {
                    // Echo at once: the sooner it is back, the longer the lease lasts.
                    self.next_beat = now;
                }
            }
        }
        Next::Stay
    }

    pub(super) fn tick(&mut self, now: Moment, timing: &Timing, actions: &mut Actions) -> Next {
        if self.silence.lost(now, self.next_beat) {
            return Next::Arbitrate(Suspicion::Silent);
        }
        if now >= self.next_beat {
            self.next_beat = now + timing.heartbeat;
            actions.push(Action::SendHeartbeat(Heartbeat {
                generation: self.generation,
                stamp: now,
                echo: self.promise.echo(),
                received: self.progress.received,
                standing: if self.wants_hand_over { Standing::WantsHandOver } else { Standing::Paired },
            }));
        }
        Next::Stay
    }

    pub(super) fn deadline(&self) -> Moment {
        self.next_beat.min(self.silence.deadline())
    }
}
