//! The primary of a pair: it runs the guest, logs, and releases what the gate lets out.

use super::Next;
use super::action::{Action, Actions, Suspicion};
use super::event::{Ack, ChannelLoss, Event, Heartbeat, Standing};
use super::gate::Gate;
use super::moment::Moment;
use super::silence::Silence;
use super::throttle::Throttle;
use super::timing::Timing;

/// State of a primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Primary {
    generation: u64,
    silence: Silence,
    next_beat: Moment,
    sent: u64,
    /// Since when the acknowledgement of something sent is awaited without any progress, if it is.
    waits_since: Option<Moment>,
    /// This side was absent while it waited: until then the acks have time to be read.
    excused_until: Option<Moment>,
    throttle: Throttle,
    lag: u64,
    executed: u64,
    phase: Phase,
    guest: Guest,
}

/// What was done to the guest and has to be undone, or ended, when the pair ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Guest {
    pub(super) stalled: bool,
    pub(super) throttled: bool,
    /// StopGuest was asked for.
    pub(super) stopped: bool,
    pub(super) leaving: bool,
    pub(super) ended: bool,
}

/// How far a deliberate hand-over, or the end of the guest, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Running,
    /// StopGuest was asked for.
    Stopping,
    /// The guest stands; its last log wants acknowledging, its last output releasing.
    Flushing {
        sequence: u64,
    },
    /// The gate is shut for good and the backup has been told so.
    HandedOver {
        sequence: u64,
        until: Moment,
    },
    /// The guest ended; its last log wants acknowledging, its last output releasing.
    Ending {
        sequence: u64,
    },
}

impl Primary {
    /// A backup was committed to at `now`.
    pub(super) fn new(now: Moment, timing: &Timing, generation: u64) -> Self {
        Self {
            generation,
            // After the lease has ended nothing leaves: no use in waiting longer. It also gives the side
            // whose guest runs a small start before the backup when the link between them breaks.
            silence: Silence::new(now, timing.lease(), timing.heartbeat),
            next_beat: now,
            sent: 0,
            waits_since: None,
            excused_until: None,
            throttle: Throttle::new(timing),
            lag: 0,
            executed: 0,
            phase: Phase::Running,
            guest: Guest::default(),
        }
    }

    /// The generation of the pair.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The newest batch given to the channel.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// What the backup last said of its lag: nanoseconds, and entries.
    #[must_use]
    pub const fn lag(&self) -> (u64, u64) {
        (self.lag, self.sent.saturating_sub(self.executed))
    }

    /// The backup's acknowledgement, on the shortest way: no action can come of it before the next tick.
    pub(super) fn on_ack(&mut self, now: Moment, ack: &Ack, gate: &mut Gate) -> Next {
        if ack.generation != self.generation {
            return Next::Stay;
        }
        self.lag = ack.lag;
        self.executed = self.executed.max(ack.executed.min(self.sent));
        self.heard(now, ack.received, ack.echo, gate)
    }

    /// As [`Self::on_ack`] for what the backup's adapter has, which says nothing of the process behind it: no
    /// sign of life, no echo.
    pub(super) fn on_placed(&mut self, now: Moment, generation: u64, sequence: u64, gate: &mut Gate) -> Next {
        if generation != self.generation {
            return Next::Stay;
        }
        if sequence > self.sent {
            return Next::Arbitrate(Suspicion::Channel(ChannelLoss::Corrupt));
        }
        self.acknowledged(now, sequence, gate);
        Next::Stay
    }

    fn acknowledged(&mut self, now: Moment, received: u64, gate: &mut Gate) {
        if received > gate.acked() {
            self.waits_since = (received < self.sent).then_some(now);
            self.excused_until = None;
            gate.on_ack(received);
        }
    }

    fn heard(&mut self, now: Moment, received: u64, echo: Option<Moment>, gate: &mut Gate) -> Next {
        if received > self.sent {
            return Next::Arbitrate(Suspicion::Channel(ChannelLoss::Corrupt));
        }
        self.silence.heard(now);
        self.acknowledged(now, received, gate);
        if let Some(stamp) = echo {
            gate.on_echo(now, stamp);
        }
        Next::Stay
    }

    pub(super) fn on(&mut self, now: Moment, event: Event, gate: &mut Gate, actions: &mut Actions) -> Next {
        match event {
            Event::Heartbeat(heartbeat) => return self.on_heartbeat(now, &heartbeat, gate, actions),
            Event::Ack(ack) => return self.on_ack(now, &ack, gate),
            Event::Sent { sequence } => {
                self.sent = self.sent.max(sequence);
                if self.sent > gate.acked() {
                    self.waits_since.get_or_insert(now);
                }
            }
            // A backup that takes over closes the channel: after a hand-over that is no loss.
            Event::ChannelLost { generation, loss }
                if generation == self.generation && !self.handed_over() =>
            {
                return Next::Arbitrate(Suspicion::Channel(loss));
            }
            Event::LogFull if !self.guest.stalled => {
                self.guest.stalled = true;
                actions.push(Action::Stall(true));
            }
            Event::LogFree if self.guest.stalled => {
                self.guest.stalled = false;
                actions.push(Action::Stall(false));
            }
            Event::HandOver => self.hand_over(actions),
            Event::Leave => {
                self.guest.leaving = true;
                self.hand_over(actions);
            }
            Event::GuestStopped { sequence } if self.phase == Phase::Stopping => {
                self.phase = Phase::Flushing { sequence };
            }
            Event::GuestEnded { sequence } if matches!(self.phase, Phase::Running | Phase::Stopping) => {
                self.guest.ended = true;
                self.phase = Phase::Ending { sequence };
            }
            _ => {}
        }
        Next::Stay
    }

    fn on_heartbeat(
        &mut self,
        now: Moment,
        heartbeat: &Heartbeat,
        gate: &mut Gate,
        actions: &mut Actions,
    ) -> Next {
        if heartbeat.generation != self.generation {
            return Next::Stay;
        }
        match heartbeat.standing {
            Standing::Claiming if self.handed_over() => self.silence.heard(now),
            Standing::Claiming => return Next::Arbitrate(Suspicion::PeerClaims),
            Standing::Leaving => return Next::Arbitrate(Suspicion::PeerLeaves),
            standing => {
                if standing == Standing::WantsHandOver {
                    self.hand_over(actions);
                }
                return self.heard(now, heartbeat.received, heartbeat.echo, gate);
            }
        }
        Next::Stay
    }

    fn hand_over(&mut self, actions: &mut Actions) {
        if self.phase == Phase::Running {
            self.phase = Phase::Stopping;
            self.guest.stopped = true;
            actions.push(Action::StopGuest);
        }
    }

    pub(super) fn tick(
        &mut self,
        now: Moment,
        timing: &Timing,
        gate: &mut Gate,
        actions: &mut Actions,
    ) -> Next {
        if self.silence.lost(now, self.next_beat) {
            return Next::Arbitrate(Suspicion::Silent);
        }
        if self.acks_stopped(now, timing) {
            return Next::Arbitrate(Suspicion::NoAcks);
        }
        match self.phase {
            Phase::Flushing { sequence } if gate.acked() >= sequence && gate.held() == 0 => {
                gate.shut();
                self.phase = Phase::HandedOver { sequence, until: now + timing.hand_over_patience };
                self.next_beat = now;
            }
            Phase::HandedOver { until, .. } if now >= until => {
                return Next::Arbitrate(Suspicion::NotTakenOver);
            }
            Phase::Ending { sequence } if gate.acked() >= sequence && gate.held() == 0 => return Next::End,
            _ => {}
        }
        if let Some(level) = self.throttle.on_lag(self.lag, self.sent.saturating_sub(self.executed)) {
            self.guest.throttled = level > 0;
            actions.push(Action::Throttle(level));
        }
        if now >= self.next_beat {
            self.next_beat = now + timing.heartbeat;
            let standing = match self.phase {
                Phase::HandedOver { sequence, .. } => Standing::HandedOver { sequence },
                _ => Standing::Paired,
            };
            actions.push(Action::SendHeartbeat(Heartbeat {
                generation: self.generation,
                stamp: now,
                echo: None,
                received: 0,
                standing,
            }));
        }
        Next::Stay
    }

    /// Whether nothing is acknowledged any more. As with silence, a side that was itself absent (frozen, starved)
    /// does not take that for the peer's doing: it gives one heartbeat, once, to read what has come meanwhile.
    fn acks_stopped(&mut self, now: Moment, timing: &Timing) -> bool {
        let Some(since) = self.waits_since else { return false };
        if now.since(since) < timing.ack_patience {
            return false;
        }
        if now.since(self.next_beat) > timing.heartbeat {
            self.excused_until.get_or_insert(now + timing.heartbeat);
        }
        self.excused_until.is_none_or(|until| now >= until)
    }

    pub(super) fn deadline(&self, timing: &Timing, gate: &Gate) -> Moment {
        if let Phase::Flushing { sequence } | Phase::Ending { sequence } = self.phase
            && gate.acked() >= sequence
            && gate.held() == 0
        {
            return Moment::ZERO;
        }
        let mut at = self.next_beat.min(self.silence.deadline());
        if let Some(since) = self.waits_since {
            at = at.min((since + timing.ack_patience).max(self.excused_until.unwrap_or(Moment::ZERO)));
        }
        match self.phase {
            Phase::HandedOver { until, .. } => at.min(until),
            _ => at,
        }
    }

    pub(super) const fn handed_over(&self) -> bool {
        matches!(self.phase, Phase::HandedOver { .. })
    }

    pub(super) const fn guest(&self) -> Guest {
        self.guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placed_log_opens_the_gate_and_is_no_sign_of_life() {
        let timing = Timing { placed: true, ..Timing::default() };
        let at = Moment::from_nanos;
        let mut gate = Gate::new(&timing, 8);
        let mut primary = Primary::new(at(0), &timing, 1);
        primary.sent = 5;
        let deadline = primary.silence.deadline();
        assert_eq!(primary.on_placed(at(10), 1, 4, &mut gate), Next::Stay);
        assert_eq!((gate.acked(), primary.silence.deadline()), (4, deadline));
        assert_eq!(primary.on_placed(at(11), 1, 3, &mut gate), Next::Stay);
        assert_eq!(primary.on_placed(at(12), 2, 5, &mut gate), Next::Stay, "another generation's");
        assert_eq!(gate.acked(), 4);
        assert_ne!(primary.on_placed(at(13), 1, 6, &mut gate), Next::Stay, "never sent");
    }

    #[test]
    fn missing_acks_are_no_fault_of_the_peer_while_this_side_was_absent() {
        let timing = Timing::default();
        let at = Moment::from_nanos;
        let waiting = || {
            let mut primary = Primary::new(at(0), &timing, 1);
            (primary.waits_since, primary.next_beat) = (Some(at(0)), at(10));
            primary
        };
        let patience = timing.ack_patience;
        // Present all the time.
        let mut primary = waiting();
        primary.next_beat = at(patience);
        assert!(!primary.acks_stopped(at(patience - 1), &timing));
        assert!(primary.acks_stopped(at(patience), &timing));
        // Frozen: one heartbeat to catch up, once.
        let mut primary = waiting();
        let woken = at(patience + 50);
        assert!(!primary.acks_stopped(woken, &timing));
        primary.next_beat = woken;
        assert!(!primary.acks_stopped(at(patience + 50 + timing.heartbeat - 1), &timing));
        assert!(primary.acks_stopped(at(patience + 50 + timing.heartbeat), &timing));
        // An ack that was read meanwhile makes good for it.
        let mut primary = waiting();
        let mut gate = Gate::new(&timing, 8);
        assert!(!primary.acks_stopped(woken, &timing));
        primary.sent = 2;
        primary.heard(woken, 1, None, &mut gate);
        assert!(!primary.acks_stopped(at(2 * patience), &timing));
    }
}
