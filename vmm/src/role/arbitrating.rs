//! Sides that took their peer for lost, and the side that opens a generation: the arbiter decides.

use super::Next;
use super::action::{Action, Actions, Report, Suspicion};
use super::backup::{Backup, Progress};
use super::claim::Claim;
use super::event::{Batch, Event, Heartbeat, Standing};
use super::moment::Moment;
use super::primary::{Guest, Primary};
use super::timing::Timing;

/// Who is at the arbiter, and what winning would mean.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Arbitrating {
    /// A first primary, which must own its generation before its guest may run.
    Opening(Opening),
    /// A primary without its backup: if it wins it runs on alone.
    Contest(Contest),
    /// A backup without its primary: if it wins it goes live.
    Takeover(Takeover),
}

/// See [`Arbitrating::Opening`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Opening {
    pub(super) claim: Claim,
    pub(super) alone: bool,
}

/// See [`Arbitrating::Contest`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Contest {
    pub(super) claim: Claim,
    pub(super) guest: Guest,
    pub(super) handed_over: bool,
    generation: u64,
    next_beat: Moment,
}

/// See [`Arbitrating::Takeover`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Takeover {
    generation: u64,
    progress: Progress,
    /// The channel may still hold log that was placed: see [`Timing::placed`].
    open: bool,
    /// Until then the primary may hold a lease.
    not_before: Moment,
    /// When it goes to the arbiter if it hears nothing more, or in any case.
    ask_at: AskAt,
    stage: Stage,
    next_beat: Moment,
    leaving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct AskAt {
    /// Last word of the primary.
    heard: Moment,
    /// So long after it.
    early: u64,
    /// In any case then.
    latest: Moment,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Executes what it received. It asks only then: replay that fails must not win.
    Draining,
    Asking(Claim),
    /// Won; waits for the end of its promise.
    Winner,
}

impl Contest {
    pub(super) fn new(now: Moment, primary: &Primary, actions: &mut Actions) -> Self {
        actions.push(Action::CloseChannel);
        Self {
            claim: Claim::ask(primary.generation() + 1, actions),
            guest: primary.guest(),
            handed_over: primary.handed_over(),
            generation: primary.generation(),
            next_beat: now,
        }
    }

    pub(super) fn on(&mut self, now: Moment, event: Event, timing: &Timing, actions: &mut Actions) -> Next {
        match event {
            Event::Verdict { generation, verdict } => {
                match self.claim.on_verdict(now, (generation, verdict), timing.claim_retry, actions) {
                    Some(true) => return Next::Win,
                    Some(false) => return Next::Lose(generation),
                    None => {}
                }
            }
            Event::Leave => self.guest.leaving = true,
            Event::GuestEnded { .. } => self.guest.ended = true,
            Event::HandOver => actions.push(Action::Report(Report::NoPeer)),
            Event::LogFull | Event::LogFree => {
                self.guest.stalled |= event == Event::LogFull;
            }
            _ => {}
        }
        Next::Stay
    }

    pub(super) fn tick(&mut self, now: Moment, timing: &Timing, actions: &mut Actions) {
        self.claim.tick(now, actions);
        beat(now, &mut self.next_beat, timing, self.generation, Standing::Claiming, actions);
    }

    pub(super) fn deadline(&self) -> Moment {
        self.claim.deadline().map_or(self.next_beat, |at| at.min(self.next_beat))
    }

    /// The generation that is over.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

impl Takeover {
    pub(super) fn new(
        now: Moment,
        timing: &Timing,
        backup: &Backup,
        why: Suspicion,
        actions: &mut Actions,
    ) -> Self {
        actions.push(Action::CloseChannel);
        let mut takeover = Self {
            generation: backup.generation(),
            progress: backup.progress(),
            open: timing.placed && !matches!(why, Suspicion::Channel(_)),
            not_before: backup.promise().not_before(),
            ask_at: AskAt {
                heard: backup.last_heard(),
                early: timing.heartbeat.saturating_mul(u64::from(timing.early)),
                latest: now + timing.silence(),
            },
            stage: Stage::Draining,
            next_beat: now,
            leaving: false,
        };
        match why {
            Suspicion::HandedOver => takeover.not_waiting(now),
            Suspicion::Silent => takeover.ask_at.latest = now,
            _ => {}
        }
        takeover
    }

    /// Log that was placed before the channel was closed: it is executed, and nobody waits for its ack.
    pub(super) fn on_batch(&mut self, batch: &Batch) {
        if self.open && batch.generation == self.generation {
            self.progress.received = self.progress.received.max(batch.sequence);
        }
    }

    fn drained(&self) -> bool {
        !self.open && self.progress.drained()
    }

    /// The primary has shut its gate for good: nothing has to be waited for.
    fn not_waiting(&mut self, now: Moment) {
        self.not_before = now;
        self.ask_at.latest = now;
    }

    pub(super) fn on(&mut self, now: Moment, event: Event, timing: &Timing, actions: &mut Actions) -> Next {
        match event {
            Event::Verdict { generation, verdict } => {
                let Stage::Asking(claim) = &mut self.stage else { return Next::Stay };
                match claim.on_verdict(now, (generation, verdict), timing.claim_retry, actions) {
                    Some(true) if self.leaving => return Next::Leave,
                    Some(true) => {
                        self.stage = Stage::Winner;
                        self.next_beat = now;
                    }
                    Some(false) => return Next::Lose(generation),
                    None => {}
                }
            }
            Event::Executed { sequence, lag, digest } => self.progress.on_executed(sequence, lag, digest),
            Event::Batch(batch) => self.on_batch(&batch),
            Event::ChannelLost { generation, .. } if generation == self.generation => self.open = false,
            Event::Diverged(divergence) => return Next::Diverge(divergence),
            Event::Heartbeat(heartbeat) if heartbeat.generation == self.generation => {
                self.ask_at.heard = now;
                if let Standing::HandedOver { sequence } = heartbeat.standing
                    && self.progress.received >= sequence
                {
                    self.not_waiting(now);
                }
            }
            Event::Leave => match self.stage {
                // A claim on its way cannot be called back: whether it was won has to be known first.
                Stage::Asking(_) => self.leaving = true,
                Stage::Draining | Stage::Winner => return Next::Leave,
            },
            Event::GuestEnded { .. } => return Next::End,
            Event::HandOver => {}
            _ => {}
        }
        Next::Stay
    }

    pub(super) fn tick(&mut self, now: Moment, timing: &Timing, actions: &mut Actions) -> Next {
        match &mut self.stage {
            Stage::Draining => {
                if self.drained() && now >= self.ask_at.moment() {
                    self.stage = Stage::Asking(Claim::ask(self.generation + 1, actions));
                }
            }
            Stage::Asking(claim) => claim.tick(now, actions),
            Stage::Winner => {
                if now >= self.not_before {
                    return Next::Win;
                }
            }
        }
        let (generation, standing) = match self.stage {
            Stage::Winner => (self.generation + 1, Standing::Won),
            Stage::Draining | Stage::Asking(_) => (self.generation, Standing::Claiming),
        };
        beat(now, &mut self.next_beat, timing, generation, standing, actions);
        Next::Stay
    }

    pub(super) fn deadline(&self) -> Moment {
        let at = match &self.stage {
            Stage::Draining if self.drained() => Some(self.ask_at.moment()),
            Stage::Draining => None,
            Stage::Asking(claim) => claim.deadline(),
            Stage::Winner => Some(self.not_before),
        };
        at.map_or(self.next_beat, |at| at.min(self.next_beat))
    }

    /// How far it has come with the log.
    #[must_use]
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// The generation that is over.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

impl AskAt {
    fn moment(&self) -> Moment {
        self.latest.min(self.heard + self.early)
    }
}

/// Sends a heartbeat with this standing if it is time for one.
pub(super) fn beat(
    now: Moment,
    next_beat: &mut Moment,
    timing: &Timing,
    generation: u64,
    standing: Standing,
    actions: &mut Actions,
) {
    if now >= *next_beat {
        *next_beat = now + timing.heartbeat;
        let heartbeat = Heartbeat { generation, stamp: now, echo: None, received: 0, standing };
        actions.push(Action::SendHeartbeat(heartbeat));
    }
}
