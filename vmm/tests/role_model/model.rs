//! What can happen in a [`World`], and what it leads to.

use stateright::{Model, Property};
use tandem_vmm::role::action::Actions;
use tandem_vmm::role::event::{Batch, ChannelLoss, Divergence, Event, Heartbeat, Verdict};
use tandem_vmm::role::side::{Side, State as Role};
use tandem_vmm::role::{Start, Timing};

use crate::reached::Reached;
use crate::world::{BACKUP, Channel, PRIMARY, Used, World};

/// What may happen, and how often.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bounds {
    pub(crate) name: &'static str,
    pub(crate) ticks: u64,
    pub(crate) outputs: u64,
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
    pub(crate) unreachable: u8,
    pub(crate) hand_overs: u8,
    pub(crate) leaves: u8,
    pub(crate) divergences: u8,
    /// The backup takes its time to execute.
    pub(crate) lazy: bool,
    /// Log counts from when it is placed in the backup's memory, read or not.
    pub(crate) placed: bool,
    /// Starts from nothing instead of from a pair, and processes may start again.
    pub(crate) from_start: bool,
    /// What must happen in some run, for the check to mean something.
    pub(crate) reaches: &'static [Reached],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    Time,
    Tick(usize),
    Heartbeat(usize, Heartbeat),
    Batch,
    Ack,
    /// A batch on its way reaches the backup's memory; the primary's adapter learns what has.
    Place,
    Placed,
    ChannelLost(usize),
    Cut,
    Guest,
    Release(usize),
    Execute,
    /// The claim of this side reaches the arbiter.
    Claim(usize),
    /// This side is told that the arbiter is unreachable.
    Unreachable(usize),
    Answer(usize),
    Crash(usize),
    HandOver(usize),
    Leave(usize),
    Stopped,
    Diverge,
    Joined,
    Welcomed,
    StartAgain(usize),
}

impl Bounds {
    const fn timing(&self) -> Timing {
        // Lease 2, silence 3: one tick is the margin.
        Timing {
            heartbeat: 1,
            missed: 3,
            margin_permille: 100,
            early: 1,
            claim_retry: 1,
            ack_patience: 1_000,
            hand_over_patience: 1,
            lag_bound: 1_000,
            lag_entries: 1_000,
            placed: self.placed,
        }
    }

    fn start(&self, side: usize) -> (Side, Actions) {
        let start = Start { generation: 1, claimed: None, alone: false };
        match side {
            PRIMARY => Side::primary(self.timing(), 4, start).expect("valid"),
            _ => (Side::backup(self.timing(), 4, None).expect("valid"), Actions::default()),
        }
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            now: 0,
            sides: [None, None],
            lives: [1, 1],
            datagrams: Default::default(),
            channel: None,
            claims: Default::default(),
            answers: [None, None],
            winners: Vec::new(),
            stopping: false,
            welcome: None,
            outputs: Vec::new(),
            batches: 0,
            base: 0,
            left: 0,
            holder: None,
            kept: None,
            used: Used::default(),
            wrong: None,
            refused: false,
        };
        for side in [PRIMARY, BACKUP] {
            let (actor, actions) = self.start(side);
            world.sides[side] = Some(actor);
            world.act(side, &actions);
        }
        if !self.from_start {
            for step in [Step::Claim(PRIMARY), Step::Answer(PRIMARY), Step::Joined, Step::Welcomed] {
                world = self.next_state(&world, step).expect("possible");
            }
            assert_eq!([world.state(0), world.state(1)], [Some(Role::Primary), Some(Role::Backup)]);
        }
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.wrong.is_some() {
            return;
        }
        if world.now < self.ticks {
            steps.push(Step::Time);
        }
        for side in [PRIMARY, BACKUP] {
            let Some(actor) = &world.sides[side] else {
                if self.from_start && world.lives[side] < 2 {
                    steps.push(Step::StartAgain(side));
                }
                continue;
            };
            if actor.state() == Role::Halted {
                continue;
            }
            if actor.deadline().is_some_and(|deadline| deadline <= world.at()) {
                steps.push(Step::Tick(side));
            }
            steps.extend(
                world.datagrams[side].iter().flatten().map(|heartbeat| Step::Heartbeat(side, *heartbeat)),
            );
            if world.channel.as_ref().is_some_and(|channel| {
                let empty = match side {
                    PRIMARY => channel.acks.is_empty(),
                    _ if self.placed => channel.placed == 0,
                    _ => channel.log.is_empty(),
                };
                // A backup that closed the channel is told when it has read what was placed.
                let waits = channel.open[side] || (self.placed && side == BACKUP);
                channel.lost[side] && waits && empty
            }) {
                steps.push(Step::ChannelLost(side));
            }
            if actor.releasable(world.at()) > actor.gate().gone() {
                steps.push(Step::Release(side));
            }
            if world.answers[side].is_some() {
                steps.push(Step::Answer(side));
            }
            if world.used.crashes < self.crashes {
                steps.push(Step::Crash(side));
            }
            if world.used.hand_overs < self.hand_overs {
                steps.push(Step::HandOver(side));
            }
            if world.used.leaves < self.leaves {
                steps.push(Step::Leave(side));
            }
            let asks = world.claims[side].iter().any(|(life, _)| *life == world.lives[side]);
            if asks && world.used.unreachable < self.unreachable && world.answers[side].is_none() {
                steps.push(Step::Unreachable(side));
            }
        }
        for side in [PRIMARY, BACKUP] {
            // Also when its process is dead: the write may be on its way.
            if !world.claims[side].is_empty() && world.answers[side].is_none() {
                steps.push(Step::Claim(side));
            }
        }
        if let Some(channel) = &world.channel {
            let there = if self.placed { channel.placed > 0 } else { !channel.log.is_empty() };
            let reads = channel.open[BACKUP] || (self.placed && channel.lost[BACKUP]);
            if reads && there && world.welcome.is_none() {
                steps.push(Step::Batch);
            }
            if self.placed && channel.open[BACKUP] && channel.placed < channel.log.len() {
                steps.push(Step::Place);
            }
            if channel.open[PRIMARY] && channel.completed < channel.newest && world.sides[PRIMARY].is_some() {
                steps.push(Step::Placed);
            }
            if channel.open[PRIMARY] && !channel.acks.is_empty() {
                steps.push(Step::Ack);
            }
            if world.used.cuts < self.cuts && channel.open != [false; 2] {
                steps.push(Step::Cut);
            }
        }
        let primary = world.state(PRIMARY);
        if (world.outputs.len() as u64) < self.outputs
            && !world.stopping
            && matches!(primary, Some(Role::Primary | Role::Live | Role::Arbitrating))
            && world.holder == Some((PRIMARY, world.lives[PRIMARY]))
        {
            steps.push(Step::Guest);
        }
        if world.stopping && primary == Some(Role::Primary) {
            steps.push(Step::Stopped);
        }
        if world.to_execute().is_some() {
            steps.push(Step::Execute);
            if world.used.divergences < self.divergences {
                steps.push(Step::Diverge);
            }
        }
        let waits = [world.state(PRIMARY), world.state(BACKUP)] == [Some(Role::Joining), Some(Role::Joining)];
        let takes = world.state(PRIMARY) == Some(Role::Live) && world.state(BACKUP) == Some(Role::Joining);
        if self.from_start && (waits || takes) {
            steps.push(Step::Joined);
        }
        if world.welcome.is_some() && world.state(BACKUP) == Some(Role::Joining) {
            steps.push(Step::Welcomed);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        let now = world.at();
        match step {
            Step::Time => world.now += 1,
            Step::Tick(side) => world.event(side, Event::Tick),
            Step::Heartbeat(side, heartbeat) => world.event(side, Event::Heartbeat(heartbeat)),
            Step::Batch => {
                let channel = world.channel.as_mut()?;
                let batch = channel.log.remove(0);
                channel.placed = channel.placed.saturating_sub(1);
                world.event(BACKUP, Event::Batch(batch));
            }
            Step::Place => {
                let channel = world.channel.as_mut()?;
                channel.newest = channel.log[channel.placed].sequence;
                channel.placed += 1;
            }
            Step::Placed => {
                let channel = world.channel.as_mut()?;
                channel.completed = channel.newest;
                let (generation, newest) = (channel.generation, channel.newest);
                if let Some(actions) = world.sides[PRIMARY].as_mut()?.on_placed(now, generation, newest) {
                    world.act(PRIMARY, &actions);
                }
            }
            Step::Ack => {
                let ack = world.channel.as_mut()?.acks.remove(0);
                world.event(PRIMARY, Event::Ack(ack));
            }
            Step::ChannelLost(side) => {
                let channel = world.channel.as_mut()?;
                channel.open[side] = false;
                if self.placed {
                    // Told once; what was not placed by now never is.
                    channel.lost[side] = false;
                    channel.log.truncate(channel.placed);
                }
                // The generation of the channel is the one in which it was made.
                let generation = world.sides[side].as_ref()?.generation();
                world.event(side, Event::ChannelLost { generation, loss: ChannelLoss::Closed });
            }
            Step::Cut => {
                world.used.cuts += 1;
                let channel = world.channel.as_mut()?;
                channel.log.truncate(channel.placed);
                channel.acks.clear();
                channel.lost = channel.open;
            }
            Step::Guest => {
                world.batches += 1;
                let sequence = world.batches - world.base;
                world.outputs.push(world.batches);
                if world.state(PRIMARY) == Some(Role::Primary) {
                    let generation = world.sides[PRIMARY].as_ref()?.generation();
                    world.event(PRIMARY, Event::Sent { sequence });
                    if let Some(channel) = world.channel.as_mut().filter(|channel| !channel.lost[BACKUP]) {
                        channel.log.push(Batch { generation, sequence, stamp: None });
                    }
                }
                world.sides[PRIMARY].as_mut()?.bind(sequence).ok()?;
            }
            Step::Release(side) => {
                let actor = world.sides[side].as_mut()?;
                let number = actor.gate().gone() + 1;
                assert!(number <= actor.releasable(now));
                actor.released(number);
                world.left += 1;
                if world.holder != Some((side, world.lives[side])) {
                    world.wrong("a loser's output leaves");
                }
                // Whoever may still go live must have the log of it.
                let sequence = *world.outputs.get(world.left as usize - 1)?;
                let received = world.sides[BACKUP]
                    .as_ref()
                    .and_then(Side::progress)
                    .map(|progress| world.base + progress.received + world.placed());
                let next = world.sides[BACKUP].as_ref().map_or(0, Side::generation) + 1;
                let barred = world
                    .winners
                    .get(next as usize - 1)
                    .is_some_and(|winner| *winner != (BACKUP, world.lives[BACKUP]));
                if side == PRIMARY && received.is_some_and(|received| received < sequence) && !barred {
                    world.wrong("an output leaves that the backup cannot reproduce");
                }
            }
            Step::Execute => {
                let sequence = world.to_execute()?;
                world.kept = Some(world.base + sequence);
                world.event(BACKUP, Event::Executed { sequence, lag: 0, digest: 0 });
            }
            Step::Claim(side) => {
                let (life, generation) = world.claims[side].pop_first()?;
                let me = (side, life);
                let won = match world.winners.get(generation as usize - 1) {
                    Some(winner) => *winner == me,
                    None => {
                        assert_eq!(world.winners.len() as u64 + 1, generation, "a generation is left out");
                        world.winners.push(me);
                        true
                    }
                };
                if world.sides[side].is_some() && life == world.lives[side] {
                    world.answers[side] = Some((generation, if won { Verdict::Won } else { Verdict::Lost }));
                }
            }
            Step::Unreachable(side) => {
                world.used.unreachable += 1;
                // The claim itself stays on its way.
                let generation = world.claims[side].first()?.1;
                world.answers[side] = Some((generation, Verdict::Unreachable));
            }
            Step::Answer(side) => {
                let (generation, verdict) = world.answers[side].take()?;
                world.event(side, Event::Verdict { generation, verdict });
            }
            Step::Crash(side) => {
                world.used.crashes += 1;
                world.crash(side);
            }
            Step::HandOver(side) => {
                world.used.hand_overs += 1;
                world.event(side, Event::HandOver);
            }
            Step::Leave(side) => {
                world.used.leaves += 1;
                world.event(side, Event::Leave);
            }
            Step::Stopped => {
                let sequence = world.batches - world.base;
                world.stopping = false;
                world.event(PRIMARY, Event::GuestStopped { sequence });
            }
            Step::Diverge => {
                world.used.divergences += 1;
                world.event(BACKUP, Event::Diverged(Divergence { position: 1, expected: 1, found: 2 }));
            }
            Step::Joined => {
                let generation = world.sides[PRIMARY].as_ref()?.generation();
                world.channel = Some(Channel {
                    generation,
                    log: Vec::new(),
                    acks: Vec::new(),
                    placed: 0,
                    newest: 0,
                    completed: 0,
                    lost: [false; 2],
                    open: [true; 2],
                });
                // A backup begins with the guest as it is now.
                world.base = world.batches;
                world.kept = Some(world.base);
                world.event(PRIMARY, Event::Joined);
            }
            Step::Welcomed => {
                let generation = world.welcome.take()?;
                world.event(BACKUP, Event::Welcomed { generation });
            }
            Step::StartAgain(side) => {
                world.lives[side] += 1;
                world.answers[side] = None;
                let (actor, actions) = self.start(side);
                world.sides[side] = Some(actor);
                world.act(side, &actions);
            }
        }
        let live = |side: usize| world.state(side) == Some(Role::Live);
        if live(PRIMARY) && live(BACKUP) {
            world.wrong("two live sides");
        }
        world.settle(self);
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let reached = self.reaches.iter().map(|(name, condition)| Property::sometimes(name, *condition));
        reached.chain([Property::<Self>::always("safe", |_, world| world.wrong.is_none())]).collect()
    }
}
