//! One side of a pair: the state machine that dispatches events to the role and changes the role.

use super::Next;
use super::action::{Action, Actions, HaltReason, Report, Suspicion};
use super::arbitrating::{Arbitrating, Contest, Opening, Takeover, beat};
use super::backup::{Backup, Progress};
use super::claim::Claim;
use super::event::{Ack, Batch, Divergence, Event, Standing};
use super::gate::{Gate, GateFull};
use super::moment::Moment;
use super::primary::{Guest, Primary};
use super::timing::{Timing, TimingError};

pub use super::joining::{Joining, Start};
pub use super::live::Live;

/// So many silence bounds long a winner tells its former peer that it won. The peer learns it from the
/// arbiter in any case.
const WINNER_TELLS_FOR: u64 = 20;

/// One side. Owned by the host's I/O thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Side {
    timing: Timing,
    gate: Gate,
    role: Role,
}

/// What a side is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant, reason = "there is one of it per process, and it is never moved in bulk")]
pub enum Role {
    /// No pair, no arbiter: outputs leave at once.
    Solo(Live),
    /// Waits for its peer.
    Joining(Joining),
    /// Runs the guest, with a backup.
    Primary(Primary),
    /// Executes the primary's log.
    Backup(Backup),
    /// Waits for the arbiter.
    Arbitrating(Arbitrating),
    /// Is the machine, without a backup.
    Live(Live),
    /// A backup whose replay went elsewhere: it will never go live.
    Diverged(Diverged),
    /// Stands still for good.
    Halted(HaltReason),
}

/// A backup that diverged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Diverged {
    generation: u64,
    divergence: Divergence,
    next_beat: Moment,
}

impl Diverged {
    /// Where.
    #[must_use]
    pub const fn divergence(&self) -> Divergence {
        self.divergence
    }
}

/// A side's state in short, for people and for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// See [`Role::Solo`].
    Solo,
    /// See [`Role::Joining`].
    Joining,
    /// See [`Role::Primary`].
    Primary,
    /// See [`Role::Backup`].
    Backup,
    /// See [`Role::Arbitrating`].
    Arbitrating,
    /// See [`Role::Live`].
    Live,
    /// See [`Role::Diverged`].
    Diverged,
    /// See [`Role::Halted`].
    Halted,
}

impl Side {
    /// A machine without a pair. `capacity` is the number of outputs that may wait.
    ///
    /// # Errors
    /// The timing contradicts itself.
    pub fn solo(timing: Timing, capacity: usize, now: Moment) -> Result<(Self, Actions), TimingError> {
        let mut actions = Actions::default();
        let mut side = Self::new(timing, capacity, Role::Solo(Live::new(now, now, 0, false)))?;
        side.gate.open();
        actions.push(Action::StartGuest);
        Ok((side, actions))
    }

    /// The first primary of a generation. It claims the generation before anything else: so a primary that
    /// starts again after a failover, or two that start by mistake, are refused.
    ///
    /// # Errors
    /// The timing contradicts itself.
    pub fn primary(timing: Timing, capacity: usize, start: Start) -> Result<(Self, Actions), TimingError> {
        let mut actions = Actions::default();
        let Start { generation, claimed, alone } = start;
        let role = match claimed {
            Some(claimed) if claimed >= generation => {
                let reason = HaltReason::Refused { generation, claimed };
                actions.push(Action::Halt(reason));
                Role::Halted(reason)
            }
            _ => {
                let claim = Claim::ask(generation, &mut actions);
                Role::Arbitrating(Arbitrating::Opening(Opening { claim, alone }))
            }
        };
        Ok((Self::new(timing, capacity, role)?, actions))
    }

    /// A backup, which waits for its primary's welcome. `claimed` is the latest generation that the arbiter
    /// said was claimed, if it could be asked.
    ///
    /// # Errors
    /// The timing contradicts itself.
    pub fn backup(timing: Timing, capacity: usize, claimed: Option<u64>) -> Result<Self, TimingError> {
        Self::new(timing, capacity, Role::Joining(Joining::Backup { claimed }))
    }

    fn new(timing: Timing, capacity: usize, role: Role) -> Result<Self, TimingError> {
        timing.validate()?;
        Ok(Self { timing, gate: Gate::new(&timing, capacity), role })
    }

    /// Takes one event, handled at `now`, and says what is to be done.
    pub fn on(&mut self, now: Moment, event: Event) -> Actions {
        let mut actions = Actions::default();
        let next = self.dispatch(now, event, &mut actions);
        self.turn(now, next, &mut actions);
        let next = self.tick(now, &mut actions);
        self.turn(now, next, &mut actions);
        actions
    }

    /// The short way of [`Event::Ack`]: moves the gate, and leaves everything else to the next event. Ask
    /// [`Side::releasable`] right after. Any action that comes of a bad ack is returned.
    pub fn on_ack(&mut self, now: Moment, ack: &Ack) -> Option<Actions> {
        let Role::Primary(primary) = &mut self.role else { return None };
        match primary.on_ack(now, ack, &mut self.gate) {
            Next::Stay => None,
            next => {
                let mut actions = Actions::default();
                self.turn(now, next, &mut actions);
                Some(actions)
            }
        }
    }

    /// The transport says that log up to `sequence` lies in the backup's memory ([`Timing::placed`]): moves the
    /// gate. It is no sign of life of the backup's process. Any action that comes of a bad one is returned.
    pub fn on_placed(&mut self, now: Moment, generation: u64, sequence: u64) -> Option<Actions> {
        let Role::Primary(primary) = &mut self.role else { return None };
        match primary.on_placed(now, generation, sequence, &mut self.gate) {
            Next::Stay => None,
            next => {
                let mut actions = Actions::default();
                self.turn(now, next, &mut actions);
                Some(actions)
            }
        }
    }

    /// The short way of [`Event::Batch`]: the ack to send at once. `None`: it must not be acknowledged, nor
    /// executed, unless it was placed before the channel was closed ([`Timing::placed`]).
    pub fn on_batch(&mut self, now: Moment, batch: &Batch) -> Option<Ack> {
        match &mut self.role {
            Role::Backup(backup) => backup.on_batch(now, batch),
            Role::Arbitrating(Arbitrating::Takeover(takeover)) => {
                takeover.on_batch(batch);
                None
            }
            _ => None,
        }
    }

    /// Binds the next output to the batch with its marker: see [`Gate::bind`].
    ///
    /// # Errors
    /// So many outputs wait as the gate has room for; the guest must wait.
    pub fn bind(&mut self, sequence: u64) -> Result<u64, GateFull> {
        self.gate.bind(sequence)
    }

    /// All outputs with a number below this may leave at `now`: see [`Gate::releasable`].
    #[must_use]
    pub fn releasable(&self, now: Moment) -> u64 {
        self.gate.releasable(now)
    }

    /// All outputs with a number below `number` have left, to the last byte.
    pub fn released(&mut self, number: u64) {
        self.gate.released(number);
    }

    /// When to send [`Event::Tick`] at the latest. `None`: never again.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        match &self.role {
            Role::Primary(primary) => Some(primary.deadline(&self.timing, &self.gate)),
            Role::Backup(backup) => Some(backup.deadline()),
            Role::Arbitrating(Arbitrating::Opening(opening)) => opening.claim.deadline(),
            Role::Arbitrating(Arbitrating::Contest(contest)) => Some(contest.deadline()),
            Role::Arbitrating(Arbitrating::Takeover(takeover)) => Some(takeover.deadline()),
            Role::Live(live) | Role::Solo(live) => live.deadline(&self.gate),
            Role::Diverged(diverged) => Some(diverged.next_beat),
            Role::Joining(_) | Role::Halted(_) => None,
        }
    }

    /// The state in short.
    #[must_use]
    pub const fn state(&self) -> State {
        match self.role {
            Role::Solo(_) => State::Solo,
            Role::Joining(_) => State::Joining,
            Role::Primary(_) => State::Primary,
            Role::Backup(_) => State::Backup,
            Role::Arbitrating(_) => State::Arbitrating,
            Role::Live(_) => State::Live,
            Role::Diverged(_) => State::Diverged,
            Role::Halted(_) => State::Halted,
        }
    }

    /// The generation that this side belongs to or waits for; zero if none.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        match &self.role {
            Role::Joining(Joining::Primary { generation }) => *generation,
            Role::Primary(primary) => primary.generation(),
            Role::Backup(backup) => backup.generation(),
            Role::Arbitrating(Arbitrating::Opening(opening)) => opening.claim.generation(),
            Role::Arbitrating(Arbitrating::Contest(contest)) => contest.generation(),
            Role::Arbitrating(Arbitrating::Takeover(takeover)) => takeover.generation(),
            Role::Live(live) => live.generation,
            Role::Diverged(diverged) => diverged.generation,
            Role::Solo(_) | Role::Joining(Joining::Backup { .. }) | Role::Halted(_) => 0,
        }
    }

    /// The role with all of its state.
    #[must_use]
    pub const fn role(&self) -> &Role {
        &self.role
    }

    /// The output gate.
    #[must_use]
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The constants in force.
    #[must_use]
    pub const fn timing(&self) -> &Timing {
        &self.timing
    }

    /// A backup's progress with the log, also while it takes over.
    #[must_use]
    pub const fn progress(&self) -> Option<Progress> {
        match &self.role {
            Role::Backup(backup) => Some(backup.progress()),
            Role::Arbitrating(Arbitrating::Takeover(takeover)) => Some(takeover.progress()),
            _ => None,
        }
    }

    fn dispatch(&mut self, now: Moment, event: Event, actions: &mut Actions) -> Next {
        if let Event::Heartbeat(heartbeat) = event
            && heartbeat.standing == Standing::Won
            && heartbeat.generation == self.generation() + 1
            && matches!(
                self.role,
                Role::Primary(_)
                    | Role::Backup(_)
                    | Role::Diverged(_)
                    | Role::Arbitrating(Arbitrating::Contest(_) | Arbitrating::Takeover(_))
            )
        {
            return Next::Lose(heartbeat.generation);
        }
        match &mut self.role {
            Role::Primary(primary) => primary.on(now, event, &mut self.gate, actions),
            Role::Backup(backup) => backup.on(now, event, actions),
            Role::Arbitrating(Arbitrating::Contest(contest)) => contest.on(now, event, &self.timing, actions),
            Role::Arbitrating(Arbitrating::Takeover(takeover)) => {
                takeover.on(now, event, &self.timing, actions)
            }
            Role::Arbitrating(Arbitrating::Opening(opening)) => match event {
                Event::Verdict { generation, verdict } => {
                    match opening.claim.on_verdict(
                        now,
                        (generation, verdict),
                        self.timing.claim_retry,
                        actions,
                    ) {
                        Some(true) => Next::Win,
                        Some(false) => Next::Refuse { generation, claimed: generation },
                        None => Next::Stay,
                    }
                }
                Event::Leave => Next::Leave,
                _ => Next::Stay,
            },
            Role::Joining(joining) => joining.on(event),
            Role::Solo(live) | Role::Live(live) => live.on(event, actions),
            Role::Diverged(_) if event == Event::Leave => Next::Leave,
            Role::Diverged(_) | Role::Halted(_) => Next::Stay,
        }
    }

    fn tick(&mut self, now: Moment, actions: &mut Actions) -> Next {
        match &mut self.role {
            Role::Primary(primary) => primary.tick(now, &self.timing, &mut self.gate, actions),
            Role::Backup(backup) => backup.tick(now, &self.timing, actions),
            Role::Arbitrating(Arbitrating::Opening(opening)) => {
                opening.claim.tick(now, actions);
                Next::Stay
            }
            Role::Arbitrating(Arbitrating::Contest(contest)) => {
                contest.tick(now, &self.timing, actions);
                Next::Stay
            }
            Role::Arbitrating(Arbitrating::Takeover(takeover)) => takeover.tick(now, &self.timing, actions),
            Role::Solo(live) | Role::Live(live) => live.tick(now, &self.timing, &self.gate, actions),
            Role::Diverged(diverged) => {
                let next_beat = &mut diverged.next_beat;
                beat(now, next_beat, &self.timing, diverged.generation, Standing::Leaving, actions);
                Next::Stay
            }
            Role::Joining(_) | Role::Halted(_) => Next::Stay,
        }
    }

    /// Changes the role as `next` says. Every change of role is here.
    fn turn(&mut self, now: Moment, next: Next, actions: &mut Actions) {
        match next {
            Next::Stay => {}
            Next::Pair { generation, start } => {
                self.gate.protect(&self.timing);
                actions.push(Action::Welcome { generation });
                if start {
                    actions.push(Action::StartGuest);
                }
                self.role = Role::Primary(Primary::new(now, &self.timing, generation));
            }
            Next::Follow { generation } => {
                actions.push(Action::StartGuest);
                self.role = Role::Backup(Backup::new(now, &self.timing, generation));
            }
            Next::Arbitrate(why) => self.arbitrate(now, why, actions),
            Next::Win => self.win(now, actions),
            Next::Lose(generation) => {
                let handed_over = match &self.role {
                    Role::Primary(primary) => primary.handed_over(),
                    Role::Arbitrating(Arbitrating::Contest(contest)) => contest.handed_over,
                    _ => false,
                };
                let reason = match handed_over {
                    true => HaltReason::HandedOver { generation },
                    false => HaltReason::Lost { generation },
                };
                self.halt(reason, actions);
            }
            Next::Refuse { generation, claimed } => {
                self.halt(HaltReason::Refused { generation, claimed }, actions);
            }
            Next::Diverge(divergence) => {
                actions.push(Action::CloseChannel);
                actions.push(Action::Report(Report::Diverged(divergence)));
                let generation = self.generation();
                self.role = Role::Diverged(Diverged { generation, divergence, next_beat: now });
            }
            Next::Leave => {
                if matches!(self.role, Role::Backup(_)) {
                    beat(now, &mut { now }, &self.timing, self.generation(), Standing::Leaving, actions);
                    actions.push(Action::CloseChannel);
                }
                self.halt(HaltReason::Left, actions);
            }
            Next::End => self.halt(HaltReason::Ended, actions),
        }
    }

    fn arbitrate(&mut self, now: Moment, why: Suspicion, actions: &mut Actions) {
        actions.push(Action::Report(Report::Suspects(why)));
        let arbitrating = match &self.role {
            Role::Primary(primary) if primary.guest().leaving => {
                // It would end here even if it won: then the backup had better win, if it lives.
                actions.push(Action::CloseChannel);
                return self.halt(HaltReason::Left, actions);
            }
            Role::Primary(primary) => {
                self.gate.shut();
                Arbitrating::Contest(Contest::new(now, primary, actions))
            }
            Role::Backup(backup) => {
                Arbitrating::Takeover(Takeover::new(now, &self.timing, backup, why, actions))
            }
            _ => return,
        };
        self.role = Role::Arbitrating(arbitrating);
    }

    /// The generation asked for is this side's, and the time to use it has come.
    fn win(&mut self, now: Moment, actions: &mut Actions) {
        let Role::Arbitrating(arbitrating) = &self.role else { return };
        let tells_until = now + self.timing.silence().saturating_mul(WINNER_TELLS_FOR);
        match arbitrating {
            Arbitrating::Opening(opening) => {
                let generation = opening.claim.generation();
                if opening.alone {
                    self.gate.open();
                    actions.push(Action::StartGuest);
                    self.role = Role::Live(Live::new(now, now, generation, false));
                } else {
                    self.role = Role::Joining(Joining::Primary { generation });
                }
            }
            Arbitrating::Contest(contest) => {
                let Guest { stalled, throttled, stopped, leaving, ended } = contest.guest;
                if leaving {
                    return self.halt(HaltReason::Left, actions);
                }
                let generation = contest.claim.generation();
                self.gate.open();
                actions.push(Action::RunAlone { generation });
                if throttled {
                    actions.push(Action::Throttle(0));
                }
                if stalled {
                    actions.push(Action::Stall(false));
                }
                if stopped {
                    actions.push(Action::ResumeGuest);
                }
                self.role = Role::Live(Live::new(now, tells_until, generation, ended));
            }
            Arbitrating::Takeover(takeover) => {
                let generation = takeover.generation() + 1;
                self.gate.open();
                actions.push(Action::GoLive { generation });
                self.role = Role::Live(Live::new(now, tells_until, generation, false));
            }
        }
    }

    fn halt(&mut self, reason: HaltReason, actions: &mut Actions) {
        self.gate.shut();
        actions.push(Action::Halt(reason));
        self.role = Role::Halted(reason);
    }
}
