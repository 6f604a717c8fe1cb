//! The path exit → log → gate allocates nothing once it is warm: on the vCPU thread from an exit to the sent
//! batch, on the side thread from an ack to the output that leaves.

#[path = "../../../../logchan/tests/common/counting.rs"]
mod counting;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use tandem_logchan::ack::AckState;
use tandem_logchan::backup::{LogReader, LogReceiver, Next, pair};
use tandem_logchan::primary::{AckReceiver, LogSender};
use tandem_logchan::transport::inproc::{InprocDuplex, InprocReceive, link};

pub(super) use counting::allocations;

use super::clock::now;
use super::gated::{Exits, GateReceiver, gate};
use super::log::PairLog;
use super::shared::Shared;
use crate::host::config::Config;
use crate::host::guest::{BootFacts, Guest};
use crate::host::io::terminal::Terminal;
use crate::host::leased::LeaseEnd;
use crate::host::vcpu::clock::HostClock;
use crate::host::vcpu::inputs::{HostInputs, InputSource, Packet, VcpuBell, inputs};
use crate::machine::input::Input;
use crate::machine::output::{self, DiskOp, DiskRequest, Outputs};
use crate::machine::time::VirtualTime;
use crate::machine::virtio::net::offload::HEADER_LEN;
use crate::machine::vm::Machine;
use crate::replay::builder::BatchBuilder;
use crate::replay::recorder::{Log, Pace, Recorder};
use crate::replay::run::{Run, drive};
use crate::role::event::{Ack, Batch, Verdict};
use crate::role::{Event, Moment, Side, Start, Timing};

/// The other thread of a primary, and its backup: all that is between a batch sent and an output that leaves.
struct Beyond {
    side: Side,
    bound: Option<u64>,
    gate: GateReceiver,
    exits: Exits,
    acks: AckReceiver<InprocReceive>,
    backup: Side,
    receiver: LogReceiver<InprocDuplex>,
    reader: LogReader,
    sent: u64,
    /// Outputs that have left.
    left: u64,
}

/// A primary's log over an in-process transport, its inputs, and what is beyond.
fn primary() -> (PairLog, HostInputs, InputSource, Beyond) {
    let link = link(0).unwrap();
    let state = Arc::new(AckState::new());
    let sender = LogSender::new(Box::new(link.send) as Box<_>, 1, Arc::clone(&state));
    let (receiver, reader) = pair(link.backup, 1, 0);
    let clock = HostClock::continuing(VirtualTime::ZERO);
    let (inputs, [source]) = inputs::<1>(clock, 1 << 20);
    let shared = Arc::new(Shared::new(inputs.bell()));
    let (gate_sender, gate) = gate(1).unwrap();

    // Nobody sends heartbeats here: the lease must outlast a busy machine.
    let timing = Timing { heartbeat: 1_000_000_000, missed: 60, ..Timing::default() };
    let start = Start { generation: 1, claimed: Some(0), alone: false };
    let (mut side, _) = Side::primary(timing, 256, start).unwrap();
    let mut backup = Side::backup(timing, 256, Some(1)).unwrap();
    side.on(now(), Event::Verdict { generation: 1, verdict: Verdict::Won });
    side.on(now(), Event::Joined);
    backup.on(now(), Event::Welcomed { generation: 1 });

    let terminal = Terminal::new(Some(Box::new(std::io::sink())));
    let beyond = Beyond {
        side,
        bound: None,
        gate,
        exits: Exits { taps: Vec::new(), disks: None, terminal },
        acks: AckReceiver::new(link.receive, 1, state),
        backup,
        receiver,
        reader,
        sent: 0,
        left: 0,
    };
    (PairLog::new(gate_sender, Some(sender), shared, Vec::new()), inputs, source, beyond)
}

impl Beyond {
    /// The backup takes in what was sent and acknowledges it; the primary hears it and lets outputs out. As the
    /// side threads of both do it.
    fn turn(&mut self) {
        const NOW: Option<Duration> = Some(Duration::ZERO);
        self.receiver.poll(NOW).unwrap();
        self.receiver.push().unwrap();
        let received = self.receiver.received();
        let stamp = (self.receiver.echo() != 0).then(|| Moment::from_nanos(self.receiver.echo()));
        let batch = Batch { generation: 1, sequence: received, stamp };
        let _ = self.backup.on_batch(now(), &batch);
        while let Next::Frame(_) = self.reader.next(NOW).unwrap() {
            self.reader.release();
        }
        if let Some(ack) = self.acks.poll(NOW, || now().as_nanos()).unwrap().ack {
            if ack.received > self.sent {
                self.sent = ack.received;
                self.side.on(now(), Event::Sent { sequence: self.sent });
            }
            let echo = (ack.echo != 0).then(|| Moment::from_nanos(ack.echo));
            let ack = Ack { generation: 1, received: ack.received, executed: 0, lag: 0, digest: 0, echo };
            assert!(self.side.on_ack(now(), &ack).is_none());
        }
        self.release();
    }

    fn release(&mut self) {
        while let Some(held) = self.gate.front() {
            let number = match self.bound {
                Some(number) => number,
                None => match self.side.bind(held.sequence) {
                    Ok(number) => *self.bound.insert(number),
                    Err(_) => return,
                },
            };
            let turn = now();
            if self.side.releasable(turn) <= number {
                return;
            }
            assert!(self.exits.send(&held, &LeaseEnd::never()));
            let leaving = held.leaving(turn, turn);
            self.gate.take();
            self.gate.delays.left(leaving, now());
            self.side.released(number + 1);
            self.bound = None;
            self.left += 1;
        }
        self.exits.terminal.flush();
    }
}

#[test]
fn batches_with_outputs_through_log_and_gate_allocate_nothing() {
    const ROUNDS: u64 = 200;
    let (mut log, _inputs, _source, mut beyond) = primary();
    let mut builder = BatchBuilder::new(0, VirtualTime::ZERO, 0);
    let mut point = 0;
    // A packet in, and of outputs all kinds: two packets, a line typed, a disk write (there is no disk, so that
    // nothing is written; only in the warm-up, since that is told).
    let mut round = |disk: bool| {
        point += 3;
        builder.input(point, &Input::Time(VirtualTime::from_nanos(point * 1_000)));
        builder.input(point, &Input::Packet { nic: 0, packet: &[7; 1_000] });
        log.wait_for_next(true);
        log.packet(0, &output::Packet::from_bytes(&[1; 60]).unwrap());
        log.packet(0, &output::Packet::from_bytes(&[2; 1_514]).unwrap());
        log.serial(b'\n');
        if disk {
            log.disk(DiskRequest { disk: 0, tag: point, op: DiskOp::Write { offset: 0, data: &[3; 512] } });
        }
        assert!(log.urgent());
        log.commit(builder.seal(point, point)).unwrap();
        builder.begin();
        let before = beyond.left;
        let until = Instant::now() + Duration::from_secs(10);
        while beyond.left < before + 3 + u64::from(disk) && Instant::now() < until {
            beyond.turn();
        }
        assert_eq!(beyond.left, before + 3 + u64::from(disk), "outputs are stuck at the gate");
    };
    (0..20).for_each(|_| round(true));
    let ((), allocated) = allocations(|| (0..ROUNDS).for_each(|_| round(false)));
    assert_eq!(allocated, 0, "allocations in {ROUNDS} rounds");
}

/// Who has 10.77.0.2?
fn arp_request() -> [u8; HEADER_LEN + 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[28..32].copy_from_slice(&[10, 77, 0, 1]);
    frame[38..42].copy_from_slice(&[10, 77, 0, 2]);
    let mut packet = [0; HEADER_LEN + 60];
    packet[HEADER_LEN..].copy_from_slice(&frame);
    packet
}

/// Asks the guest `rounds` times, one after the other, and makes the vCPU thread leave. Returns allocations.
fn ask(beyond: &mut Beyond, source: &mut InputSource, bell: &VcpuBell, rounds: u64) -> u64 {
    let request = arp_request();
    let until = Instant::now() + Duration::from_secs(60);
    let ((), allocated) = allocations(|| {
        for _ in 0..rounds {
            let before = beyond.left;
            let sent = source.packet_with(0, request.len(), |slot| {
                slot.copy_from_slice(&request);
                Ok::<_, ()>(Some(request.len()))
            });
            assert_eq!(sent, Ok(Packet::Sent));
            source.ring();
            while beyond.left == before && Instant::now() < until {
                beyond.turn();
            }
        }
    });
    bell.leave();
    allocated
}

#[test]
fn a_guest_that_answers_packets_makes_the_vcpu_thread_allocate_nothing() {
    // Long enough for the dirty log to be reset in between.
    const ROUNDS: u64 = 2_000;
    let system = match Kvm::new() {
        Ok(system) => system,
        Err(error) => return println!("skipped: /dev/kvm cannot be used ({error})"),
    };
    let config = r#"
        name = "alloc"
        [machine]
        memory_mib = 32
        cmdline = "ip=10.77.0.2/24"
        [[net]]
        tap = "none"
        mac = "52:54:00:00:00:01"
    "#;
    let guest = Guest::load(&Config::parse(config, Path::new("vm.toml")).unwrap()).unwrap();
    let facts = BootFacts { seed: [7; 32], wall_clock: 1_700_000_000 };
    let machine = Machine::new(&system, &guest.machine(&facts, true)).unwrap();
    let mut run = Run::new(machine);
    let (log, inputs, mut source, mut beyond) = primary();
    let bell = inputs.bell();
    let mut recorder = Recorder::new(&run, inputs, log, Pace::default());

    let left = Arc::new(AtomicU64::new(0));
    let (go, wait) = std::sync::mpsc::channel::<u64>();
    let (told, allocated_there) = std::sync::mpsc::channel();
    let there = {
        let (bell, left) = (Arc::clone(&bell), Arc::clone(&left));
        std::thread::spawn(move || {
            while let Ok(rounds) = wait.recv() {
                let allocated = ask(&mut beyond, &mut source, &bell, rounds);
                left.store(beyond.left, Ordering::SeqCst);
                told.send(allocated).unwrap();
            }
        })
    };
    let mut burst = |rounds| {
        bell.stay();
        go.send(rounds).unwrap();
        let (ended, here) = allocations(|| drive(&mut run, &mut recorder));
        ended.unwrap();
        (here, allocated_there.recv().unwrap(), left.load(Ordering::SeqCst))
    };
    // The boot, and buffers that grow to what they need.
    let (_, _, mut before) = burst(50);
    assert!(before >= 50, "the guest gave {before} answers of 50");
    // One may still grow, by chance of timing: so one burst of several must do without any allocation.
    let mut seen = Vec::new();
    while seen.last() != Some(&(0, 0)) {
        assert!(seen.len() < 4, "allocations of the vCPU thread and of the side thread, by bursts: {seen:?}");
        let (vcpu, side, after) = burst(ROUNDS);
        assert!(after >= before + ROUNDS, "the guest gave {} answers of {ROUNDS}", after - before);
        seen.push((vcpu, side));
        before = after;
    }
    drop(go);
    there.join().unwrap();
}
