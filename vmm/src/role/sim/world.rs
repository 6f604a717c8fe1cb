//! The event loop of the simulated world.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;

use super::check::{Arbiter, Check, Life};
use super::dice::Dice;
use super::guest::Guest;
use super::plan::{END, Fault, HEALED, Host, Plan, Scenario};
use crate::role::action::{Action, Actions, HaltReason};
use crate::role::event::{Ack, Batch, ChannelLoss, Divergence, Event, Heartbeat, Verdict};
use crate::role::moment::{MILLISECOND, Moment};
use crate::role::side::{Joining, Role, Side, Start, State};

/// Batches that a backup has room for.
const BACKUP_BUFFER: usize = 24;
/// Batches that a primary sends beyond the last acknowledged one.
const WINDOW: u64 = 32;
/// From one step of the guest to the next.
const STEP: u64 = 3 * MILLISECOND;

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it was about.
    pub scenario: Scenario,
    /// Outputs that left.
    pub outputs: usize,
    /// Takeovers by a backup.
    pub takeovers: u32,
    /// Primaries that ran on alone.
    pub alone: u32,
    /// Sides that were refused at their start.
    pub refused: u32,
    /// Sides that lost at the arbiter, or heard that the peer had won.
    pub lost: u32,
    /// Backups that diverged.
    pub diverged: u32,
    /// From the first fault to the first output of another side, in nanoseconds.
    pub failover: Option<u64>,
    /// The machine ran on to the end.
    pub running: bool,
    /// Events handled.
    pub events: u64,
}

/// A property that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Plays the run again.
    pub seed: u64,
    /// When, in nanoseconds of true time.
    pub at: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, {:.3} ms: {}", self.seed, self.at as f64 / 1e6, self.what)
    }
}

/// What arrives at a process.
#[derive(Clone, Debug)]
enum Arrival {
    Event(Event),
    /// On channel so and so.
    Segment(usize, Segment),
    Tick(u64),
}

/// What travels on the log channel.
#[derive(Clone, Debug)]
enum Segment {
    Welcome { generation: u64, guest: Box<Guest> },
    Batch(Batch, Entry),
    Ack(Ack),
    Gone(ChannelLoss),
}

/// One log entry.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Input(u64),
    PowerOff,
}

#[derive(Clone, Debug)]
enum Item {
    Start(Host),
    Arrive(Life, Arrival),
    /// A datagram finds whoever lives at the host.
    Datagram(Host, Heartbeat),
    GuestStep(Life),
    Execute(Life),
    /// An approved output's last byte leaves.
    Leaves(Life, u64, u64, u64),
    Claim(Life, u64, bool),
    Thaw(Life),
    Dial,
    Fault(Fault),
}

struct Scheduled(u64, u64, Item);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A TCP connection between the two hosts.
struct Channel {
    generation: u64,
    broken: bool,
    /// Arrival of the last segment, by receiver.
    last: [u64; 2],
}

/// One host with the process on it.
#[derive(Default)]
struct Node {
    life: u32,
    side: Option<Side>,
    guest: Guest,
    /// The guest after all received log: what this side could become.
    shadow: Guest,
    log: VecDeque<(u64, Entry, u64)>,
    executing: bool,
    /// Received by the kernel, not yet read for want of room.
    socket: VecDeque<(usize, Segment)>,
    channel: Option<usize>,
    sequence: u64,
    full: bool,
    runs: bool,
    stopped: bool,
    stalled: bool,
    throttle: u64,
    halted: bool,
    diverges: bool,
    /// Outputs made before this side's gate counted them.
    base: u64,
    /// Outputs given to the wire, in the gate's numbers.
    sending: u64,
    wire_free: u64,
    frozen: bool,
    inbox: Vec<Arrival>,
    tick_at: Option<u64>,
}

/// The simulated world.
pub struct World {
    plan: Plan,
    dice: Dice,
    now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    nodes: [Node; 2],
    channels: Vec<Channel>,
    arbiter: Arbiter,
    check: Check,
    partition_until: u64,
    datagrams_lost_until: u64,
    arbiter_away_until: [u64; 2],
    slow_until: u64,
    outcome: Outcome,
    first_holder: Option<Life>,
    violation: Option<String>,
    lines: Option<Vec<String>>,
}

impl World {
    /// A world in which `plan` happens.
    #[must_use]
    pub fn new(plan: Plan, traced: bool) -> Self {
        let outcome = Outcome {
            scenario: plan.scenario,
            outputs: 0,
            takeovers: 0,
            alone: 0,
            refused: 0,
            lost: 0,
            diverged: 0,
            failover: None,
            running: false,
            events: 0,
        };
        let mut world = Self {
            dice: Dice::new(plan.seed ^ 0x5eed),
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            nodes: [Node::default(), Node::default()],
            channels: Vec::new(),
            arbiter: Arbiter::default(),
            check: Check::default(),
            partition_until: 0,
            datagrams_lost_until: 0,
            arbiter_away_until: [0; 2],
            slow_until: 0,
            outcome,
            first_holder: None,
            violation: None,
            lines: traced.then(Vec::new),
            plan,
        };
        world.at(MILLISECOND, Item::Start(0));
        world.at(MILLISECOND, Item::Start(1));
        world.at(2 * MILLISECOND, Item::Dial);
        for (when, fault) in world.plan.faults.clone() {
            world.at(when, Item::Fault(fault));
        }
        world
    }

    /// Plays it to the end. The lines are empty unless traced.
    #[must_use]
    pub fn run(mut self) -> (Result<Outcome, Violation>, Vec<String>) {
        self.note(|world| format!("{:?}", world.plan));
        while let Some(Reverse(Scheduled(time, _, item))) = self.queue.pop() {
            if time > END || self.violation.is_some() {
                break;
            }
            self.now = time;
            self.outcome.events += 1;
            if self.outcome.events > 200_000 {
                self.violate("a side spins".into());
            }
            self.play(item);
            self.check_two_live();
        }
        if self.violation.is_none() {
            self.now = END;
            self.check_end();
        }
        self.outcome.outputs = self.check.count();
        let result = match self.violation {
            Some(what) => Err(Violation { seed: self.plan.seed, at: self.now, what }),
            None => Ok(self.outcome),
        };
        (result, self.lines.unwrap_or_default())
    }

    fn at(&mut self, time: u64, item: Item) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled(time.max(self.now), self.scheduled, item)));
    }

    fn after(&mut self, delay: u64, item: Item) {
        self.at(self.now + delay, item);
    }

    fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.lines.is_some() {
            let line = format!("{:>9.3} {}", self.now as f64 / 1e6, line(self));
            self.lines.get_or_insert_default().push(line);
        }
    }

    fn violate(&mut self, what: String) {
        self.note(|_| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    fn expect(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violate(what);
        }
    }

    fn life(&self, host: Host) -> Life {
        (host, self.nodes[host].life)
    }

    fn alive(&self, life: Life) -> bool {
        self.nodes[life.0].side.is_some() && self.nodes[life.0].life == life.1
    }

    fn state(&self, host: Host) -> Option<State> {
        self.nodes[host].side.as_ref().map(Side::state)
    }

    fn local(&self, host: Host) -> Moment {
        let (offset, ppm) = self.plan.clocks[host];
        Moment::from_nanos((offset + self.now).wrapping_add_signed(self.now as i64 / 1000 * ppm / 1000))
    }

    /// True time, a little late, at which the host's clock shows `moment`.
    fn real(&self, host: Host, moment: Moment) -> u64 {
        let (offset, ppm) = self.plan.clocks[host];
        let local = moment.as_nanos().saturating_sub(offset);
        local.saturating_add_signed(-(local as i64 / 1000 * ppm / 1000)) + 1_000
    }

    fn play(&mut self, item: Item) {
        match item {
            Item::Start(host) => self.start(host, host == 0),
            Item::Arrive(life, arrival) => {
                if self.alive(life) {
                    self.arrive(life.0, arrival);
                }
            }
            Item::Datagram(host, heartbeat) => {
                if self.nodes[host].side.is_some() {
                    self.arrive(host, Arrival::Event(Event::Heartbeat(heartbeat)));
                }
            }
            Item::GuestStep(life) => self.guest_step(life),
            Item::Execute(life) => self.execute(life),
            Item::Leaves(life, gate_number, number, value) => self.leaves(life, gate_number, (number, value)),
            Item::Claim(life, generation, answered) => {
                let won = self.arbiter.claim(generation, life);
                self.note(|_| format!("arbiter: {life:?} claims {generation}: {won}"));
                if answered {
                    let verdict = if won { Verdict::Won } else { Verdict::Lost };
                    let back = self.dice.between(0, self.plan.arbiter / 2);
                    self.after(
                        back,
                        Item::Arrive(life, Arrival::Event(Event::Verdict { generation, verdict })),
                    );
                }
            }
            Item::Thaw(life) => self.thaw(life),
            Item::Dial => self.dial(),
            Item::Fault(fault) => self.fault(fault),
        }
    }

    fn start(&mut self, host: Host, primary: bool) {
        let life = self.nodes[host].life + 1;
        self.nodes[host] = Node { life, ..Node::default() };
        let (timing, capacity) = (self.plan.timing, self.plan.capacity);
        // The arbiter may or may not have been asked before.
        let claimed = self.dice.permille(500).then(|| self.arbiter.latest());
        if primary {
            let start = Start { generation: 1, claimed, alone: self.plan.alone };
            match Side::primary(timing, capacity, start) {
                Ok((side, actions)) => {
                    self.nodes[host].side = Some(side);
                    self.act(host, &actions);
                }
                Err(error) => self.violate(error.to_string()),
            }
        } else {
            match Side::backup(timing, capacity, claimed) {
                Ok(side) => self.nodes[host].side = Some(side),
                Err(error) => self.violate(error.to_string()),
            }
        }
        let life = self.life(host);
        self.after(STEP, Item::GuestStep(life));
    }

    /// The hosts' supervisors: a waiting backup is offered to whoever can take one.
    fn dial(&mut self) {
        self.after(10 * MILLISECOND, Item::Dial);
        if self.now < self.partition_until {
            return;
        }
        for host in [0, 1] {
            let takes = match self.nodes[host].side.as_ref().map(Side::role) {
                Some(Role::Live(_) | Role::Joining(Joining::Primary { .. })) => true,
                Some(_) | None => false,
            };
            let waits = self.nodes[1 - host]
                .side
                .as_ref()
                .is_some_and(|side| matches!(side.role(), Role::Joining(Joining::Backup { .. })));
            if takes && waits && !self.nodes[1 - host].frozen {
                self.arrive(host, Arrival::Event(Event::Joined));
            }
        }
    }

    fn arrive(&mut self, host: Host, arrival: Arrival) {
        if self.nodes[host].frozen {
            self.nodes[host].inbox.push(arrival);
            return;
        }
        match arrival {
            Arrival::Event(event) => self.event(host, event),
            Arrival::Tick(time) => {
                if self.nodes[host].tick_at == Some(time) {
                    self.nodes[host].tick_at = None;
                    self.event(host, Event::Tick);
                }
            }
            Arrival::Segment(channel, segment) => {
                if self.nodes[host].channel == Some(channel) && !self.channels[channel].broken {
                    self.nodes[host].socket.push_back((channel, segment));
                    self.read(host);
                }
            }
        }
    }

    /// Reads the socket while there is room.
    fn read(&mut self, host: Host) {
        while self.nodes[host].log.len() < BACKUP_BUFFER {
            let Some((channel, segment)) = self.nodes[host].socket.pop_front() else { return };
            if self.nodes[host].channel != Some(channel) {
                continue;
            }
            let generation = self.channels[channel].generation;
            match segment {
                Segment::Welcome { generation, guest } => {
                    self.nodes[host].shadow = (*guest).clone();
                    self.nodes[host].guest = *guest;
                    self.event(host, Event::Welcomed { generation });
                }
                Segment::Batch(batch, entry) => {
                    let now = self.local(host);
                    let Some(side) = self.nodes[host].side.as_mut() else { return };
                    // The short way and the long way, by turns: they must be the same.
                    let ack = match batch.sequence % 2 {
                        0 => side.on_batch(now, &batch),
                        _ => {
                            let actions = side.on(now, Event::Batch(batch));
                            let ack = actions.iter().find_map(|action| match action {
                                Action::SendAck(ack) => Some(ack),
                                _ => None,
                            });
                            self.act(host, &actions);
                            ack
                        }
                    };
                    let Some(ack) = ack else { continue };
                    if let Entry::Input(input) = entry {
                        self.nodes[host].shadow.step(input);
                    }
                    let received = self.now;
                    self.nodes[host].log.push_back((batch.sequence, entry, received));
                    if batch.sequence % 2 == 0 {
                        self.send(host, Segment::Ack(ack));
                    }
                    self.keep_executing(host);
                }
                Segment::Ack(ack) => {
                    let now = self.local(host);
                    let Some(side) = self.nodes[host].side.as_mut() else { return };
                    if ack.received % 2 == 0 {
                        if let Some(actions) = side.on_ack(now, &ack) {
                            self.act(host, &actions);
                        }
                        self.release(host);
                    } else {
                        self.event(host, Event::Ack(ack));
                    }
                    self.window(host);
                }
                Segment::Gone(loss) => {
                    self.nodes[host].channel = None;
                    self.event(host, Event::ChannelLost { generation, loss });
                }
            }
        }
    }

    fn event(&mut self, host: Host, event: Event) {
        let now = self.local(host);
        let Some(side) = self.nodes[host].side.as_mut() else { return };
        let before = side.state();
        let actions = side.on(now, event);
        let after = side.state();
        if !matches!(event, Event::Tick | Event::Sent { .. } | Event::Executed { .. }) || before != after {
            self.note(|_| format!("{host}: {event:?}"));
        }
        if before != after {
            self.note(|_| format!("{host}: {before:?} -> {after:?}"));
        }
        self.act(host, &actions);
        self.release(host);
        self.arm(host);
    }

    fn arm(&mut self, host: Host) {
        let Some(deadline) = self.nodes[host].side.as_ref().and_then(Side::deadline) else { return };
        let late = self.dice.between(0, 100_000);
        let time = self.real(host, deadline).max(self.now + 1_000) + late;
        if self.nodes[host].tick_at.is_none_or(|armed| time < armed) {
            self.nodes[host].tick_at = Some(time);
            let life = self.life(host);
            self.at(time, Item::Arrive(life, Arrival::Tick(time)));
        }
    }

    fn act(&mut self, host: Host, actions: &Actions) {
        for action in actions {
            if !matches!(action, Action::SendHeartbeat(_) | Action::SendAck(_)) {
                self.note(|_| format!("{host}:   {action:?}"));
            }
            let life = self.life(host);
            match action {
                Action::SendHeartbeat(heartbeat) => self.send_datagram(host, heartbeat),
                Action::SendAck(ack) => self.send(host, Segment::Ack(ack)),
                Action::Welcome { generation } => {
                    self.channels.push(Channel { generation, broken: false, last: [0; 2] });
                    let channel = self.channels.len() - 1;
                    self.nodes[host].channel = Some(channel);
                    self.nodes[host].sequence = 0;
                    self.nodes[host].full = false;
                    self.nodes[1 - host].channel = Some(channel);
                    self.nodes[1 - host].socket.clear();
                    let guest = Box::new(self.nodes[host].guest.clone());
                    self.send(host, Segment::Welcome { generation, guest });
                }
                Action::StartGuest => {
                    if self.state(host) != Some(State::Backup) {
                        self.nodes[host].runs = true;
                        if let Some(holder) = self.check.holder {
                            self.violate(format!("{life:?} starts the guest that {holder:?} has"));
                        }
                        self.check.holder = Some(life);
                        self.first_holder.get_or_insert(life);
                    }
                }
                Action::Claim { generation } => self.claim(host, generation),
                Action::StopGuest => {
                    self.nodes[host].stopped = true;
                    let sequence = self.nodes[host].sequence;
                    let event = Event::GuestStopped { sequence };
                    self.after(200_000, Item::Arrive(life, Arrival::Event(event)));
                }
                Action::ResumeGuest => self.nodes[host].stopped = false,
                Action::Stall(stalled) => self.nodes[host].stalled = stalled,
                Action::Throttle(level) => self.nodes[host].throttle = u64::from(level),
                Action::CloseChannel => self.close(host, ChannelLoss::Closed),
                Action::GoLive { .. } => {
                    self.outcome.takeovers += 1;
                    if !self.nodes[host].log.is_empty() {
                        self.violate(format!("{life:?} goes live with log unread"));
                    }
                    let node = &mut self.nodes[host];
                    node.runs = true;
                    node.base = node.guest.outputs.len() as u64;
                    let result = self.check.take_over(life, &self.nodes[host].guest.outputs);
                    self.expect(result);
                }
                Action::RunAlone { .. } => {
                    self.outcome.alone += 1;
                    let result = self.check.run_alone(life);
                    self.expect(result);
                }
                Action::Halt(reason) => {
                    self.nodes[host].halted = true;
                    self.nodes[host].runs = false;
                    match reason {
                        HaltReason::Refused { .. } => self.outcome.refused += 1,
                        HaltReason::Lost { .. } => self.outcome.lost += 1,
                        _ => {}
                    }
                }
                Action::Report(report) => {
                    if matches!(report, crate::role::action::Report::Diverged(_)) {
                        self.outcome.diverged += 1;
                    }
                }
            }
        }
    }

    fn send_datagram(&mut self, from: Host, heartbeat: Heartbeat) {
        if self.now < self.partition_until.max(self.datagrams_lost_until) {
            return;
        }
        let copies = 1 + u64::from(self.dice.permille(50));
        for _ in 0..copies {
            if !self.dice.permille(self.plan.loss) {
                let (least, most) = self.plan.delay;
                let late = if self.dice.permille(20) { 30 * MILLISECOND } else { 0 };
                let delay = self.dice.between(least, most + late);
                self.after(delay, Item::Datagram(1 - from, heartbeat));
            }
        }
    }

    /// TCP: in order, all or nothing, repeated after a partition.
    fn send(&mut self, from: Host, segment: Segment) {
        let Some(index) = self.nodes[from].channel else { return };
        if self.channels[index].broken {
            return;
        }
        let (least, most) = self.plan.delay;
        let start = self.now.max(self.partition_until);
        let to = 1 - from;
        let time = self.channels[index].last[to].max(start + self.dice.between(least, most));
        self.channels[index].last[to] = time;
        let life = self.life(to);
        self.at(time, Item::Arrive(life, Arrival::Segment(index, segment)));
    }

    /// This host closes its end. The peer learns of it after all that is on its way.
    fn close(&mut self, host: Host, loss: ChannelLoss) {
        self.send(host, Segment::Gone(loss));
        self.nodes[host].channel = None;
    }

    fn claim(&mut self, host: Host, generation: u64) {
        let life = self.life(host);
        if self.now < self.arbiter_away_until[host] {
            let verdict = Verdict::Unreachable;
            let timeout = self.dice.between(MILLISECOND, 10 * MILLISECOND);
            self.after(timeout, Item::Arrive(life, Arrival::Event(Event::Verdict { generation, verdict })));
            // Ambiguous: the write may be on its way, and land at any time.
            if self.dice.permille(300) {
                let late = self.dice.between(0, 100 * MILLISECOND);
                self.after(late, Item::Claim(life, generation, false));
            }
            return;
        }
        let there = self.dice.between(0, self.plan.arbiter / 2);
        self.after(there, Item::Claim(life, generation, true));
    }

    fn guest_step(&mut self, life: Life) {
        if !self.alive(life) {
            return;
        }
        let host = life.0;
        let pause = 100 - self.nodes[host].throttle.min(99);
        self.after(STEP * 100 / pause, Item::GuestStep(life));
        let node = &self.nodes[host];
        let Some(side) = node.side.as_ref() else { return };
        if !node.runs || node.stopped || node.stalled || node.halted || node.frozen {
            return;
        }
        if side.gate().held() >= self.plan.capacity as u64 {
            return;
        }
        let input = self.dice.any();
        let output = self.nodes[host].guest.step(input);
        self.log(host, Entry::Input(input));
        if output {
            let sequence = self.nodes[host].sequence;
            let bound = self.nodes[host].side.as_mut().map(|side| side.bind(sequence));
            if !matches!(bound, Some(Ok(_))) {
                self.violate(format!("the gate of {host} refused an output: {bound:?}"));
            }
        }
        self.release(host);
    }

    /// A primary appends to its log and sends it.
    fn log(&mut self, host: Host, entry: Entry) {
        if self.state(host) != Some(State::Primary) {
            return;
        }
        self.nodes[host].sequence += 1;
        let sequence = self.nodes[host].sequence;
        self.event(host, Event::Sent { sequence });
        let stamp = self.dice.permille(500).then(|| self.local(host));
        let generation = self.nodes[host].side.as_ref().map_or(0, Side::generation);
        if self.state(host) == Some(State::Primary) {
            self.send(host, Segment::Batch(Batch { generation, sequence, stamp }, entry));
            self.window(host);
        }
    }

    /// Says when the log is full, and when it no longer is.
    fn window(&mut self, host: Host) {
        let Some(side) = self.nodes[host].side.as_ref() else { return };
        if side.state() != State::Primary {
            return;
        }
        let under_way = self.nodes[host].sequence.saturating_sub(side.gate().acked());
        if under_way >= WINDOW && !self.nodes[host].full {
            self.nodes[host].full = true;
            self.event(host, Event::LogFull);
        } else if under_way < WINDOW / 2 && self.nodes[host].full {
            self.nodes[host].full = false;
            self.event(host, Event::LogFree);
        }
    }

    fn keep_executing(&mut self, host: Host) {
        if self.nodes[host].executing || self.nodes[host].log.is_empty() {
            return;
        }
        self.nodes[host].executing = true;
        let time = if self.now < self.slow_until { 8 * MILLISECOND } else { 150_000 };
        let time = self.dice.between(time / 2, time);
        let life = self.life(host);
        self.after(time, Item::Execute(life));
    }

    fn execute(&mut self, life: Life) {
        if !self.alive(life) || self.nodes[life.0].halted {
            return;
        }
        let host = life.0;
        if self.nodes[host].frozen {
            self.after(MILLISECOND, Item::Execute(life));
            return;
        }
        self.nodes[host].executing = false;
        let Some((sequence, entry, received)) = self.nodes[host].log.pop_front() else { return };
        let lag = self.now - received;
        match entry {
            Entry::Input(_) if self.nodes[host].diverges => {
                let found = self.nodes[host].guest.digest();
                self.event(host, Event::Diverged(Divergence { position: sequence, expected: !found, found }));
                return;
            }
            Entry::Input(input) => {
                self.nodes[host].guest.step(input);
            }
            Entry::PowerOff => self.event(host, Event::GuestEnded { sequence }),
        }
        let digest = self.nodes[host].guest.digest();
        self.event(host, Event::Executed { sequence, lag, digest });
        self.read(host);
        self.keep_executing(host);
    }

    /// Gives the wire what the gate lets out. The bytes leave up to the slack later.
    fn release(&mut self, host: Host) {
        let now = self.local(host);
        let Some(side) = self.nodes[host].side.as_ref() else { return };
        let releasable = side.releasable(now);
        let slack = self.plan.timing.slack() / 100 * 98;
        while self.nodes[host].sending < releasable {
            let most = if self.dice.permille(100) { slack } else { 20_000 };
            let latest = self.now + slack;
            let node = &self.nodes[host];
            let (gate_number, number) = (node.sending, node.base + node.sending);
            let value = node.guest.outputs[number as usize];
            let time = (self.now + self.dice.between(0, most)).max(self.nodes[host].wire_free).min(latest);
            self.nodes[host].wire_free = time;
            self.nodes[host].sending += 1;
            let life = self.life(host);
            self.at(time, Item::Leaves(life, gate_number, number, value));
        }
    }

    fn leaves(&mut self, life: Life, gate_number: u64, output: (u64, u64)) {
        let may_follow: Vec<_> = [0, 1]
            .into_iter()
            .filter(|host| self.life(*host) != life)
            .filter(|host| self.may_go_live(*host))
            .map(|host| (self.life(host), self.nodes[host].shadow.outputs.get(output.0 as usize).copied()))
            .collect();
        let result = self.check.leaves(self.now, life, output, &may_follow);
        self.expect(result);
        if self.outcome.failover.is_none() && self.first_holder != Some(life) {
            self.outcome.failover = self.plan.faults.first().map(|(at, _)| self.now.saturating_sub(*at));
        }
        // Also with the process stopped or killed meanwhile: the kernel had the bytes.
        if self.alive(life)
            && let Some(side) = self.nodes[life.0].side.as_mut()
        {
            side.released(gate_number + 1);
            self.arm(life.0);
        }
    }

    /// Is this a backup that no other side has barred yet from going live?
    fn may_go_live(&self, host: Host) -> bool {
        let Some(side) = self.nodes[host].side.as_ref() else { return false };
        if side.progress().is_none() {
            return false;
        }
        let next = side.generation() + 1;
        self.arbiter.latest() < next || self.arbiter.winner(next) == Some(self.life(host))
    }

    fn freeze(&mut self, host: Host, time: u64) {
        if self.nodes[host].side.is_some() && !self.nodes[host].frozen {
            self.nodes[host].frozen = true;
            let life = self.life(host);
            self.after(time, Item::Thaw(life));
        }
    }

    /// A stopped process goes on where it stood, and then finds all that came meanwhile, in any order
    /// but for that of the channel.
    fn thaw(&mut self, life: Life) {
        if !self.alive(life) {
            return;
        }
        let host = life.0;
        self.nodes[host].frozen = false;
        self.note(|_| format!("{host}: goes on"));
        self.release(host);
        let inbox = std::mem::take(&mut self.nodes[host].inbox);
        let (segments, mut others): (Vec<_>, Vec<_>) =
            inbox.into_iter().partition(|arrival| matches!(arrival, Arrival::Segment(..)));
        let mut segments = VecDeque::from(segments);
        while !segments.is_empty() || !others.is_empty() {
            let choice = self.dice.between(0, (segments.len() + others.len()) as u64 - 1) as usize;
            let arrival = match choice.checked_sub(segments.len()) {
                Some(other) => others.swap_remove(other),
                None => match segments.pop_front() {
                    Some(segment) => segment,
                    None => continue,
                },
            };
            self.arrive(host, arrival);
        }
        self.arm(host);
    }

    fn fault(&mut self, fault: Fault) {
        self.note(|_| format!("FAULT {fault:?}"));
        let until = |time: u64| (self.now + time).min(HEALED);
        match fault {
            Fault::Kill(host) => {
                // The kernel closes in order, or resets and loses what was on its way.
                if self.dice.permille(500) {
                    self.close(host, ChannelLoss::Closed);
                } else {
                    self.cut([host == 1, host == 0]);
                }
                self.nodes[host].side = None;
            }
            Fault::PowerLoss(host) => {
                self.cut([false; 2]);
                self.nodes[host].side = None;
            }
            Fault::Freeze(host, time) => self.freeze(host, time),
            Fault::Partition(time) => self.partition_until = until(time),
            Fault::DatagramsLost(time) => self.datagrams_lost_until = until(time),
            Fault::Cut(told) => self.cut(told),
            Fault::ArbiterAway(host, time) => self.arbiter_away_until[host] = until(time),
            Fault::SlowBackup(time) => self.slow_until = until(time),
            Fault::HandOver(host) => self.operator(host, Event::HandOver),
            Fault::Leave(host) => self.operator(host, Event::Leave),
            Fault::Diverge => {
                for node in &mut self.nodes {
                    node.diverges = node.side.as_ref().is_some_and(|side| side.progress().is_some());
                }
            }
            Fault::GuestEnds => {
                for host in [0, 1] {
                    let node = &mut self.nodes[host];
                    if node.runs && !node.stopped && !node.frozen && node.side.is_some() {
                        node.runs = false;
                        self.log(host, Entry::PowerOff);
                        let sequence = self.nodes[host].sequence;
                        self.event(host, Event::GuestEnded { sequence });
                    }
                }
            }
            Fault::StartAgain(host) if self.nodes[host].side.is_none() => self.start(host, true),
            Fault::ComeBack(host) if self.nodes[host].side.is_none() => self.start(host, false),
            Fault::StartAgain(_) | Fault::ComeBack(_) => {}
        }
    }

    fn operator(&mut self, host: Host, event: Event) {
        if self.nodes[host].side.is_some() {
            self.arrive(host, Arrival::Event(event));
        }
    }

    /// The channel breaks; those told learn of it a little later.
    fn cut(&mut self, told: [bool; 2]) {
        let Some(index) = self.nodes[0].channel.or(self.nodes[1].channel) else { return };
        self.channels[index].broken = true;
        let generation = self.channels[index].generation;
        for host in [0, 1] {
            if told[host] && self.nodes[host].channel == Some(index) {
                let late = self.dice.between(0, 5 * MILLISECOND);
                let event = Event::ChannelLost { generation, loss: ChannelLoss::Reset };
                let life = self.life(host);
                self.after(late, Item::Arrive(life, Arrival::Event(event)));
            }
        }
    }

    fn check_two_live(&mut self) {
        if [0, 1].iter().all(|host| self.state(*host) == Some(State::Live)) {
            self.violate("two live sides".into());
        }
    }

    /// The machine must run on, unless the side with the right to it is gone.
    fn check_end(&mut self) {
        let states = [self.state(0), self.state(1)];
        self.note(|_| format!("end: {states:?}"));
        let waits = |state: &Option<State>| matches!(state, Some(State::Arbitrating));
        if states.iter().any(waits) {
            return self.violate(format!("a side still waits at the end: {states:?}"));
        }
        let running = [0, 1].iter().any(|host| {
            matches!(states[*host], Some(State::Primary | State::Live))
                && self.check.holder == Some(self.life(*host))
                && END - self.check.last < 150 * MILLISECOND
        });
        self.outcome.running = running;
        if running {
            return;
        }
        if states.iter().any(|state| matches!(state, Some(State::Primary | State::Backup | State::Live))) {
            return self.violate(format!("nothing leaves any more: {states:?}"));
        }
        // Nobody runs it. The winner of the latest generation must be the reason.
        let latest = self.arbiter.latest();
        let Some(winner) = self.arbiter.winner(latest) else {
            return;
        };
        let role = self.nodes[winner.0].side.as_ref().map(Side::role).filter(|_| self.alive(winner));
        let gone = match role {
            None => true,
            Some(Role::Halted(reason)) => matches!(reason, HaltReason::Left | HaltReason::Ended),
            Some(Role::Diverged(_)) => true,
            Some(_) => false,
        };
        let other = 1 - winner.0;
        // The other side, if it followed the winner in this generation, should have taken over.
        let abandoned = matches!(
            self.nodes[other].side.as_ref().map(Side::role),
            Some(Role::Halted(HaltReason::Lost { generation } | HaltReason::HandedOver { generation })) if *generation > latest
        );
        if !gone || abandoned {
            self.violate(format!("nobody runs the machine of {winner:?}, generation {latest}: {states:?}"));
        }
    }
}
