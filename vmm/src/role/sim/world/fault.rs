//! What happens to the hosts: starts, stops, faults, operators.

use std::collections::VecDeque;

use super::{Arrival, Entry, Item, Node, STEP, World};
use crate::role::event::{ChannelLoss, Event};
use crate::role::joining::{Joining, Start};
use crate::role::moment::MILLISECOND;
use crate::role::side::{Role, Side};
use crate::role::sim::check::Life;
use crate::role::sim::plan::{Fault, HEALED, Host};

impl World {
    pub(super) fn start(&mut self, host: Host, primary: bool) {
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
    pub(super) fn dial(&mut self) {
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

    pub(super) fn freeze(&mut self, host: Host, time: u64) {
        if self.nodes[host].side.is_some() && !self.nodes[host].frozen {
            self.nodes[host].frozen = true;
            let life = self.life(host);
            self.after(time, Item::Thaw(life));
        }
    }

    /// A stopped process goes on where it stood, and then finds all that came meanwhile, in any order but
    /// for that of the channel.
    pub(super) fn thaw(&mut self, life: Life) {
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

    pub(super) fn fault(&mut self, fault: Fault) {
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

    pub(super) fn operator(&mut self, host: Host, event: Event) {
        if self.nodes[host].side.is_some() {
            self.arrive(host, Arrival::Event(event));
        }
    }
}
