//! What is between the hosts: datagrams, the log channel, the way to the arbiter.

use super::{Arrival, Item, Segment, World};
use crate::role::event::{ChannelLoss, Event, Heartbeat, Verdict};
use crate::role::moment::MILLISECOND;
use crate::role::sim::plan::Host;

impl World {
    pub(super) fn send_datagram(&mut self, from: Host, heartbeat: Heartbeat) {
        if self.now < self.partition_until.max(self.datagrams_lost_until) {
            return;
        }
        let copies = 1 + u64::from(self.dice.permille(50));
        for _ in 0..copies {
            if !self.dice.permille(self.plan.loss) {
                let (least, most) = self.plan.delay;
                let late = if self.dice.permille(self.plan.late) { 30 * MILLISECOND } else { 0 };
                let delay = self.dice.between(least, most + late);
                self.after(delay, Item::Datagram(1 - from, heartbeat));
            }
        }
    }

    /// TCP: in order, all or nothing, repeated after a partition.
    pub(super) fn send(&mut self, from: Host, segment: Segment) {
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
    pub(super) fn close(&mut self, host: Host, loss: ChannelLoss) {
        self.send(host, Segment::Gone(loss));
        self.nodes[host].channel = None;
    }

    pub(super) fn claim(&mut self, host: Host, generation: u64) {
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

    /// The channel breaks; those told learn of it a little later.
    pub(super) fn cut(&mut self, told: [bool; 2]) {
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
}
