//! What a process on a host does: events in, actions out, the guest, the gate.

use super::{Arrival, BACKUP_BUFFER, Channel, Entry, Item, STEP, Segment, WINDOW, World};
use crate::role::action::{Action, Actions, HaltReason, Report};
use crate::role::event::{Batch, ChannelLoss, Divergence, Event};
use crate::role::moment::MILLISECOND;
use crate::role::side::{Side, State};
use crate::role::sim::check::Life;
use crate::role::sim::plan::{Host, Scenario};

impl World {
    pub(super) fn arrive(&mut self, host: Host, arrival: Arrival) {
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
                if self.channels[channel].broken {
                    return;
                }
                if self.nodes[host].channel == Some(channel) {
                    self.nodes[host].socket.push_back((channel, segment));
                    self.read(host);
                } else if let Segment::Batch(batch, _) = segment {
                    // A host whose reader is slow to stop: the side must not let it acknowledge this.
                    let now = self.local(host);
                    let side = self.nodes[host].side.as_mut();
                    if let Some(ack) = side.and_then(|side| side.on_batch(now, &batch)) {
                        self.violate(format!("{host} acknowledges after it closed the channel: {ack:?}"));
                    }
                }
            }
        }
    }

    /// Reads the socket while there is room.
    pub(super) fn read(&mut self, host: Host) {
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

    pub(super) fn event(&mut self, host: Host, event: Event) {
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

    pub(super) fn arm(&mut self, host: Host) {
        let Some(deadline) = self.nodes[host].side.as_ref().and_then(Side::deadline) else { return };
        let late = self.dice.between(0, 100_000);
        let time = self.real(host, deadline).max(self.now + 1_000) + late;
        if self.nodes[host].tick_at.is_none_or(|armed| time < armed) {
            self.nodes[host].tick_at = Some(time);
            let life = self.life(host);
            self.at(time, Item::Arrive(life, Arrival::Tick(time)));
        }
    }

    pub(super) fn act(&mut self, host: Host, actions: &Actions) {
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
                    let made = self.nodes[host].guest.outputs.len();
                    if self.plan.scenario == Scenario::HandedOver && self.check.count() != made {
                        self.violate(format!(
                            "{made} outputs made before a calm hand-over, {} left",
                            self.check.count()
                        ));
                    }
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
                    if matches!(report, Report::Diverged(_)) {
                        self.outcome.diverged += 1;
                    }
                }
            }
        }
    }

    pub(super) fn guest_step(&mut self, life: Life) {
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
    pub(super) fn log(&mut self, host: Host, entry: Entry) {
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
    pub(super) fn window(&mut self, host: Host) {
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

    pub(super) fn keep_executing(&mut self, host: Host) {
        if self.nodes[host].executing || self.nodes[host].log.is_empty() {
            return;
        }
        self.nodes[host].executing = true;
        let time = if self.now < self.slow_until { 8 * MILLISECOND } else { 150_000 };
        let time = self.dice.between(time / 2, time);
        let life = self.life(host);
        self.after(time, Item::Execute(life));
    }

    pub(super) fn execute(&mut self, life: Life) {
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
    pub(super) fn release(&mut self, host: Host) {
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

    pub(super) fn leaves(&mut self, life: Life, gate_number: u64, output: (u64, u64)) {
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
}
