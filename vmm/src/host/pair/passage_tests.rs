//! Packets that pass by the gate, over a real socket: by the gate's rule, in order, and without an allocation.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tandem_logchan::ack::AckState;
use tandem_logchan::backup::{LogReader, LogReceiver, pair};
use tandem_logchan::primary::{AckReceiver, LogSender};
use tandem_logchan::transport::tcp::{self, TcpConfig, TcpDuplex, TcpReceive};

use super::burst::Burst;
use super::clock::now;
use super::gated::{GateReceiver, gate};
use super::log::PairLog;
use super::no_alloc::allocations;
use super::passage::Passage;
use super::shared::Shared;
use crate::host::tap::Tap;
use crate::host::vcpu::inputs::VcpuBell;
use crate::machine::input::Input;
use crate::machine::output::{Outputs, Packet};
use crate::machine::time::VirtualTime;
use crate::replay::builder::BatchBuilder;
use crate::replay::recorder::Log;

/// A primary's log with a passage, and what it leads to.
pub(super) struct Primary {
    pub(super) log: PairLog,
    builder: BatchBuilder,
    point: u64,
    pub(super) shared: Arc<Shared>,
    pub(super) gate: GateReceiver,
    /// Takes acks in, which nobody else does here.
    acks: AckReceiver<TcpReceive>,
    backup: LogReceiver<TcpDuplex>,
    _reader: LogReader,
    /// The other end of the tap.
    network: UnixDatagram,
}

impl Primary {
    pub(super) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = tcp::connect(listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
        let (send, receive) = tcp::primary(stream, &TcpConfig::default()).unwrap();
        let backup = tcp::backup(listener.accept().unwrap().0, &TcpConfig::default()).unwrap();
        let state = Arc::new(AckState::new());
        let acks = AckReceiver::new(receive, 1, Arc::clone(&state));
        let (backup, reader) = pair(backup, 1, 0);
        let (tap, network) = UnixDatagram::pair().unwrap();
        network.set_nonblocking(true).unwrap();
        let taps = vec![Arc::new(Tap::stand_in(File::from(OwnedFd::from(tap))))];
        let shared = Arc::new(Shared::new(Arc::new(VcpuBell::default())));
        let (gate_sender, gate) = gate(1).unwrap();
        let sender = LogSender::new(Box::new(send) as Box<_>, 1, state);
        let mut log = PairLog::new(gate_sender, Some(sender), Arc::clone(&shared), Vec::new());
        let glance = acks.glance().unwrap();
        log.open_passage(Passage::new(Burst::new(taps).unwrap(), glance, Arc::clone(&shared)));
        let builder = BatchBuilder::new(0, VirtualTime::ZERO, 0);
        Self { log, builder, point: 0, shared, gate, acks, backup, _reader: reader, network }
    }

    /// Until when packets may pass, from now on.
    pub(super) fn lease(&self, length: Duration) {
        let until = now().as_nanos() + length.as_nanos() as u64;
        self.shared.lease.set(until);
    }

    /// Sends a batch; the backup acknowledges it if it shall, and the ack lies in the socket.
    pub(super) fn commit(&mut self, acknowledged: bool) {
        self.point += 1;
        self.builder.input(self.point, &Input::Packet { nic: 0, packet: &[7; 60] });
        self.log.commit(self.builder.seal(self.point, self.point)).unwrap();
        self.builder.begin();
        let until = Instant::now() + Duration::from_secs(10);
        while acknowledged && self.backup.received() < self.log.sent() && Instant::now() < until {
            self.backup.poll(Some(Duration::from_millis(10))).unwrap();
            self.backup.push().unwrap();
        }
    }

    /// The guest puts packets out that rely on what was sent.
    fn put_out(&mut self, packets: std::ops::Range<u8>) {
        self.log.wait_for_next(false);
        self.log.kicked();
        for n in packets {
            self.log.packet(0, &Packet::from_bytes(&[n; 60]).unwrap());
        }
        assert!(self.log.made_outputs());
    }

    /// What has reached the network.
    pub(super) fn seen(&self) -> Vec<u8> {
        let mut bytes = [0; 128];
        std::iter::from_fn(|| self.network.recv(&mut bytes).ok().map(|_| bytes[0])).collect()
    }

    /// What waits at the gate; all of it leaves, as far as the gate is concerned.
    pub(super) fn held(&mut self) -> usize {
        let mut held = 0;
        while self.gate.front().is_some() {
            self.gate.take();
            held += 1;
        }
        held
    }
}

#[test]
fn packets_pass_with_their_log_acknowledged_and_a_lease_and_wait_at_the_gate_otherwise() {
    let mut primary = Primary::new();
    // Acknowledged, but no lease was granted.
    primary.commit(true);
    primary.put_out(0..2);
    assert_eq!((primary.seen(), primary.held()), (vec![], 2));
    // A lease, and an ack that nobody has taken in. More than a burst holds, too.
    primary.lease(Duration::from_secs(60));
    primary.put_out(2..3);
    primary.put_out(3..200);
    assert_eq!((primary.seen(), primary.held()), ((2..200).collect(), 0));
    // Not acknowledged yet: they wait, and so do those behind them whose log is.
    primary.commit(false);
    primary.put_out(0..2);
    primary.commit(true);
    primary.put_out(2..3);
    assert_eq!((primary.seen(), primary.held()), (vec![], 3));
    // The gate is empty: the way is free again; also once the acks were taken in.
    primary.put_out(3..5);
    while primary.acks.poll(Some(Duration::ZERO), || 1).unwrap().ack.is_some() {}
    primary.put_out(5..7);
    assert_eq!((primary.seen(), primary.held()), ((3..7).collect(), 0));
    // The lease is over.
    primary.lease(Duration::ZERO);
    primary.put_out(0..70);
    assert_eq!((primary.seen(), primary.held()), (vec![], 70));
    // Outputs that wait for the batch to come go into the gate, behind those that could leave.
    primary.lease(Duration::from_secs(60));
    primary.log.wait_for_next(false);
    primary.log.packet(0, &Packet::from_bytes(&[1; 60]).unwrap());
    primary.log.wait_for_next(true);
    primary.log.packet(0, &Packet::from_bytes(&[2; 60]).unwrap());
    primary.log.packet(0, &Packet::from_bytes(&[3; 60]).unwrap());
    assert!(primary.log.made_outputs());
    assert_eq!((primary.seen(), primary.held()), (vec![1], 2));
    // All that left by themselves were counted: 198, 4 and 1; who takes the others out tells the others' delays.
    assert_eq!(primary.gate.delays.told().unwrap().count, 203);
}

/// Who listens for acks need not be told of an output whose ack is to come, and must be told of any other.
#[test]
fn the_side_thread_is_woken_only_for_outputs_that_it_would_not_find() {
    let mut primary = Primary::new();
    let woken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&woken);
    primary.shared.set_waker(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    let wakings = || woken.swap(0, Ordering::Relaxed);
    primary.lease(Duration::from_secs(60));
    // It sleeps, whether the ack comes or not.
    primary.commit(false);
    primary.put_out(0..2);
    assert_eq!((primary.held(), wakings()), (2, 1));
    // It listens, and the ack is to come: also if it lies in the socket.
    primary.shared.listening.store(true, Ordering::Relaxed);
    primary.put_out(0..2);
    primary.commit(true);
    primary.put_out(0..2);
    assert_eq!((primary.held(), wakings()), (4, 0));
    // The ack was taken in before the output was put into the gate, behind which it would wait for the next ack.
    primary.commit(false);
    primary.put_out(0..2);
    primary.commit(true);
    while primary.acks.poll(Some(Duration::ZERO), || 1).unwrap().ack.is_some() {}
    primary.put_out(2..3);
    assert_eq!((primary.held(), wakings()), (3, 1));
    // It passes.
    primary.put_out(3..5);
    assert_eq!((primary.seen(), primary.held(), wakings()), (vec![3, 4], 0, 0));
    // An output that waits for the batch to come; one before it that waits for none.
    primary.log.wait_for_next(true);
    primary.log.packet(0, &Packet::from_bytes(&[1; 60]).unwrap());
    assert!(primary.log.made_outputs());
    assert_eq!((primary.held(), wakings()), (1, 0));
    primary.lease(Duration::ZERO);
    primary.log.wait_for_next(false);
    primary.log.packet(0, &Packet::from_bytes(&[1; 60]).unwrap());
    primary.log.wait_for_next(true);
    primary.log.packet(0, &Packet::from_bytes(&[2; 60]).unwrap());
    assert!(primary.log.made_outputs());
    assert_eq!((primary.held(), wakings()), (2, 1));
}

#[test]
fn packets_that_pass_allocate_nothing() {
    let mut primary = Primary::new();
    primary.lease(Duration::from_secs(600));
    let mut bytes = [0; 128];
    let mut round = |packets: u8| {
        primary.commit(true);
        primary.put_out(0..packets);
        assert!(primary.gate.front().is_none());
        let seen = std::iter::from_fn(|| primary.network.recv(&mut bytes).ok()).count();
        assert_eq!(seen, usize::from(packets));
        while primary.acks.poll(Some(Duration::ZERO), || 1).unwrap().ack.is_some() {}
    };
    [1, 50, 100].into_iter().for_each(&mut round);
    let ((), allocated) = allocations(|| [1, 2, 50, 100, 1].into_iter().for_each(&mut round));
    assert_eq!(allocated, 0);
}
