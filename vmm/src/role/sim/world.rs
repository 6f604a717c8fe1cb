//! The event loop of the simulated world.

mod fault;
mod net;
mod process;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;

use super::check::{Arbiter, Check, Life};
use super::dice::Dice;
use super::guest::Guest;
use super::plan::{END, Fault, Host, Plan, Scenario};
use crate::role::action::HaltReason;
use crate::role::event::{Ack, Batch, ChannelLoss, Event, Heartbeat, Verdict};
use crate::role::moment::{MILLISECOND, Moment};
use crate::role::side::{Role, Side, State};

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

    /// Is this a backup that no other side has barred yet from going live?
    fn may_go_live(&self, host: Host) -> bool {
        let Some(side) = self.nodes[host].side.as_ref() else { return false };
        if side.progress().is_none() {
            return false;
        }
        let next = side.generation() + 1;
        self.arbiter.latest() < next || self.arbiter.winner(next) == Some(self.life(host))
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
