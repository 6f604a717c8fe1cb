//! The world that is searched.

use std::collections::BTreeSet;

use tandem_vmm::role::Moment;
use tandem_vmm::role::action::{Action, Actions, HaltReason};
use tandem_vmm::role::event::{Ack, Batch, Event, Heartbeat, Standing, Verdict};
use tandem_vmm::role::side::{Side, State as Role};

use super::model::Bounds;

pub(crate) const PRIMARY: usize = 0;
pub(crate) const BACKUP: usize = 1;

/// The world. Bounded counters are part of it, so that the checker sees the bounds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) sides: [Option<Side>; 2],
    pub(crate) lives: [u8; 2],
    /// By receiver: the latest datagram of each kind.
    pub(crate) datagrams: [[Option<Heartbeat>; KINDS]; 2],
    pub(crate) channel: Option<Channel>,
    /// Claims on their way, by side: the life that asked, and the generation.
    pub(crate) claims: [BTreeSet<(u8, u64)>; 2],
    pub(crate) answers: [Option<(u64, Verdict)>; 2],
    /// Winners by generation, from 1.
    pub(crate) winners: Vec<(usize, u8)>,
    pub(crate) stopping: bool,
    pub(crate) welcome: Option<u64>,
    /// For each output of the guest, in order, the batch that it was bound to; from 1.
    pub(crate) outputs: Vec<u64>,
    /// Batches made, and those of them that the backup had from the start.
    pub(crate) batches: u64,
    pub(crate) base: u64,
    /// Outputs that have left.
    pub(crate) left: u64,
    /// Who is the machine.
    pub(crate) holder: Option<(usize, u8)>,
    /// Batches the backup executed before it went live.
    pub(crate) kept: Option<u64>,
    pub(crate) used: Used,
    pub(crate) wrong: Option<&'static str>,
    pub(crate) refused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Channel {
    pub(crate) generation: u64,
    pub(crate) log: Vec<Batch>,
    pub(crate) acks: Vec<Ack>,
    /// So many of the log's batches are in the backup's memory already, and can be read whatever happens.
    pub(crate) placed: usize,
    /// The newest batch that ever was placed, and the newest of which the primary's adapter has told it.
    pub(crate) newest: u64,
    pub(crate) completed: u64,
    /// Ends that will learn that it is over.
    pub(crate) lost: [bool; 2],
    pub(crate) open: [bool; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Used {
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
    pub(crate) unreachable: u8,
    pub(crate) hand_overs: u8,
    pub(crate) leaves: u8,
    pub(crate) divergences: u8,
}

/// Kinds of heartbeats that are kept apart.
pub(crate) const KINDS: usize = 4;

pub(crate) const fn kind(standing: Standing) -> usize {
    match standing {
        Standing::Paired => 0,
        Standing::WantsHandOver | Standing::HandedOver { .. } => 1,
        Standing::Claiming | Standing::Leaving => 2,
        Standing::Won => 3,
    }
}

impl World {
    pub(crate) fn at(&self) -> Moment {
        Moment::from_nanos(self.now)
    }

    pub(crate) fn state(&self, side: usize) -> Option<Role> {
        self.sides[side].as_ref().map(Side::state)
    }

    pub(crate) fn wrong(&mut self, what: &'static str) {
        self.wrong.get_or_insert(what);
    }

    pub(crate) fn event(&mut self, side: usize, event: Event) {
        let now = self.at();
        if let Some(actor) = self.sides[side].as_mut() {
            let actions = actor.on(now, event);
            self.act(side, &actions);
        }
    }

    /// Whether log counts from when it is placed: then the backup's own acks bring nothing.
    fn places(&self, side: usize) -> bool {
        self.sides[side].as_ref().is_some_and(|actor| actor.timing().placed)
    }

    /// Batches in the backup's memory that it has not looked at.
    pub(crate) fn placed(&self) -> u64 {
        self.channel.as_ref().map_or(0, |channel| channel.placed as u64)
    }

    pub(crate) fn act(&mut self, side: usize, actions: &Actions) {
        let me = (side, self.lives[side]);
        let places = self.places(side);
        for action in actions {
            match action {
                Action::SendHeartbeat(mut heartbeat) => {
                    // Only the primary's stamps are ever read.
                    if self.state(side) != Some(Role::Primary) {
                        heartbeat.stamp = Moment::ZERO;
                    }
                    self.datagrams[1 - side][kind(heartbeat.standing)] = Some(heartbeat);
                }
                Action::SendAck(_) if places => {}
                Action::SendAck(ack) => {
                    if let Some(channel) = self.channel.as_mut().filter(|channel| channel.open[PRIMARY]) {
                        channel.acks.push(ack);
                    }
                }
                Action::Welcome { generation } => self.welcome = Some(generation),
                Action::StartGuest => {
                    if self.state(side) != Some(Role::Backup) {
                        if self.holder.is_some() {
                            self.wrong("started twice");
                        }
                        self.holder = Some(me);
                    }
                }
                Action::Claim { generation } => {
                    self.claims[side].insert((me.1, generation));
                }
                Action::StopGuest => self.stopping = true,
                Action::CloseChannel => {
                    if let Some(channel) = self.channel.as_mut() {
                        if places && side == BACKUP && channel.open[side] {
                            // The door is shut; what is there is still to be read.
                            channel.log.truncate(channel.placed);
                            channel.lost[side] = true;
                        }
                        channel.open[side] = false;
                        channel.lost[1 - side] |= channel.open[1 - side];
                    }
                }
                Action::GoLive { .. } => {
                    if self.used.divergences > 0 {
                        self.wrong("a diverged backup goes live");
                    }
                    let executed = self.kept.unwrap_or(0);
                    let left = self.outputs.iter().take(self.left as usize);
                    if left.clone().any(|sequence| *sequence > executed) {
                        self.wrong("cannot reproduce what left");
                    }
                    self.outputs.retain(|sequence| *sequence <= executed);
                    self.holder = Some(me);
                }
                Action::RunAlone { .. } => {
                    if self.holder != Some(me) {
                        self.wrong("runs on alone, but the other is live");
                    }
                }
                Action::Halt(reason) => {
                    self.refused |= matches!(reason, HaltReason::Refused { .. });
                }
                Action::ResumeGuest | Action::Stall(_) | Action::Throttle(_) | Action::Report(_) => {}
            }
        }
    }

    /// A backup's log, as far as it is in memory and not executed.
    pub(crate) fn to_execute(&self) -> Option<u64> {
        let progress = self.sides[BACKUP].as_ref()?.progress()?;
        (!progress.drained()).then_some(progress.executed + 1)
    }

    /// Does what commutes with everything else, and forgets what can have no effect any more.
    pub(crate) fn settle(&mut self, bounds: &Bounds) {
        if !bounds.lazy
            && let Some(sequence) = self.to_execute()
        {
            self.kept = Some(self.base + sequence);
            self.event(BACKUP, Event::Executed { sequence, lag: 0, digest: 0 });
        }
        for side in [PRIMARY, BACKUP] {
            if matches!(self.state(side), None | Some(Role::Halted | Role::Live)) {
                self.datagrams[side] = Default::default();
            }
        }
        let reads =
            matches!(self.state(BACKUP), Some(Role::Backup | Role::Arbitrating)) && self.places(BACKUP);
        let ends = |channel: &Channel| channel.open == [false; 2] && !(reads && channel.lost[BACKUP]);
        if self.channel.as_ref().is_some_and(ends) {
            self.channel = None;
        }
    }

    pub(crate) fn crash(&mut self, side: usize) {
        self.sides[side] = None;
        if let Some(channel) = self.channel.as_mut() {
            channel.open[side] = false;
            channel.lost[side] = false;
            channel.lost[1 - side] |= channel.open[1 - side];
        }
    }
}
