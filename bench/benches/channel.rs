//! The parts of the log channel, one by one.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};
use std::hint::black_box;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tandem_logchan::ack::AckState;
use tandem_logchan::backup::{self, LogReader, LogReceiver};
use tandem_logchan::codec::{Encoder, access};
use tandem_logchan::frame::{Flags, Frame, Header, Kind};
use tandem_logchan::primary::{AckReceiver, LogSender};
use tandem_logchan::ring::ring;
use tandem_logchan::transport::tcp::{self, TcpConfig};
use tandem_logchan::transport::{Duplex, ReceiveHalf, SendHalf, inproc};

#[derive(Archive, Serialize, Clone, Copy)]
enum Entry {
    Time { nanos: u64 },
    Packet { nic: u8, at: u32, len: u32 },
}

#[derive(Archive, Serialize)]
struct Batch {
    position: u64,
    time: u64,
    entries: Vec<Entry>,
    blob: Vec<u8>,
}

fn batch(blob: usize) -> Batch {
    let entries = vec![Entry::Time { nanos: 3 }, Entry::Packet { nic: 0, at: 0, len: blob as u32 }];
    Batch { position: 1, time: 2, entries, blob: vec![7; blob] }
}

const HEADER: Header = Header { kind: Kind::Batch, flags: Flags::NONE, generation: 1, sequence: 1, stamp: 0 };

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    for blob in [0, 1500, 20_000] {
        let value = batch(blob);
        let (mut encoder, mut room) = (Encoder::new(), AlignedVec::<16>::new());
        room.resize(64 << 10, 0);
        let len = encoder.encode(&HEADER, &value, &mut room).unwrap();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("encode, blob {blob}"), |b| {
            b.iter(|| encoder.encode(&HEADER, black_box(&value), &mut room).unwrap());
        });
        group.bench_function(format!("check and access, blob {blob}"), |b| {
            b.iter(|| {
                let frame = Frame::decode(black_box(&room)).unwrap();
                access::<Batch>(frame.payload).unwrap().position
            });
        });
    }
}

fn rings(c: &mut Criterion) {
    let (mut producer, mut consumer) = ring(1 << 20);
    c.bench_function("ring push and pop, 128 bytes", |b| {
        b.iter(|| {
            producer.try_reserve(128).unwrap()[0] = 1;
            producer.commit(128);
            let first = consumer.front().unwrap()[0];
            let _ = consumer.release();
            first
        });
    });
}

/// Append, flush, receive, ack, all on one thread: the cost of the code without any scheduling.
fn one_thread(
    c: &mut Criterion,
    name: &str,
    (send, receive, duplex): (impl SendHalf, impl ReceiveHalf, impl Duplex),
) {
    let state = Arc::new(AckState::new());
    let sender = LogSender::new(send, 1, state.clone());
    round_trip(c, name, sender, AckReceiver::new(receive, 1, state), backup::pair(duplex, 1, 0));
}

fn round_trip<D: Duplex>(
    c: &mut Criterion,
    name: &str,
    mut sender: LogSender<impl SendHalf>,
    mut acks: AckReceiver<impl ReceiveHalf>,
    (mut receiver, mut reader): (LogReceiver<D>, LogReader),
) {
    let value = batch(0);
    c.bench_function(name, |b| {
        b.iter(|| {
            sender.append(Kind::Batch, Flags::OUTPUT, 1, &value).unwrap();
            while receiver.poll(None).unwrap().frames == 0 {}
            receiver.push().unwrap();
            while acks.poll(None, || 1).unwrap().ack.is_none() {}
            reader.next(Some(Duration::ZERO)).unwrap();
            reader.release();
        });
    });
}

fn round_trips(c: &mut Criterion) {
    let link = inproc::link(0).unwrap();
    one_thread(c, "ack round trip, in process, one thread", (link.send, link.receive, link.backup));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = tcp::connect(listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let config = TcpConfig::default();
    let (send, receive) = tcp::primary(client, &config).unwrap();
    let duplex = tcp::backup(accepted, &config).unwrap();
    one_thread(c, "ack round trip, TCP over io_uring, one thread", (send, receive, duplex));
}

/// Over the first RDMA device of this host that has an address, from it to itself.
#[cfg(feature = "rdma")]
#[allow(clippy::print_stdout, reason = "what is skipped says so")]
fn rdma_round_trip(c: &mut Criterion) {
    use std::net::IpAddr;
    use tandem_logchan::channel::{self, Link};
    use tandem_logchan::codec::SchemaDigest;
    use tandem_logchan::handshake::{Hello, Identity, PreSharedKey, Side};
    use tandem_logchan::transport::rdma::{Completion, RdmaConfig, loopback, ports};

    const PATIENCE: Duration = Duration::from_secs(10);
    let ports = ports().unwrap_or_default();
    let own = ports.iter().filter(|port| port.active).flat_map(|port| &port.gids);
    let own =
        own.filter_map(|gid| gid.parse::<IpAddr>().ok()).find(|address| loopback(*address, PATIENCE).is_ok());
    let Some(address) = own else {
        println!(
            "skipped: ack round trip over RDMA: no RDMA device of this host answers itself (tandem check)"
        );
        return;
    };
    for (name, completion) in [("events", Completion::Events), ("busy", Completion::Busy)] {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let here = listener.local_addr().unwrap();
        let link = Link::Rdma(RdmaConfig { completion, patience: PATIENCE, ..RdmaConfig::default() });
        let key = || PreSharedKey::new([7; 32]);
        let hello = |side| Hello {
            side,
            generation: 1,
            encrypt: false,
            schema: SchemaDigest::of("bench"),
            identity: Identity::builder().build(),
        };
        let backup = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            channel::backup(stream, hello(Side::Backup), &key(), &link, PATIENCE, 0).unwrap()
        });
        let stream = tcp::connect(here, PATIENCE).unwrap();
        let primary = channel::primary(stream, hello(Side::Primary), &key(), &link, PATIENCE).unwrap();
        let backup = backup.join().unwrap();
        let name = format!("ack round trip, RDMA to itself, {name}, one thread");
        round_trip(c, &name, primary.sender, primary.acks, (backup.receiver, backup.reader));
    }
}

#[cfg(not(feature = "rdma"))]
#[allow(clippy::print_stdout, reason = "what is skipped says so")]
fn rdma_round_trip(_: &mut Criterion) {
    println!("skipped: ack round trip over RDMA: cargo bench -p tandem-bench --features rdma");
}

criterion_group!(benches, codec, rings, round_trips, rdma_round_trip);
criterion_main!(benches);
