//! The way of an entry, from the append to the released ack, allocates nothing once it is warm.

#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
#[path = "common/counting.rs"]
mod counting;

use common::{Batch, Boxed, batch, in_process, in_process_sealed, over_sealed_tcp, over_tcp};
use counting::allocations;
use std::time::Duration;
use tandem_logchan::backup::Next;
use tandem_logchan::codec::access;
use tandem_logchan::frame::{Flags, Kind};
use tandem_logchan::handshake::{PreSharedKey, Side};
use tandem_logchan::heartbeat::{Heartbeat, HeartbeatKey};
use tandem_logchan::progress::Executed;
use tandem_logchan::transport::tcp::{Receive, TcpConfig};

/// One round of the whole path on one thread, for each of the batches.
fn rounds(ends: &mut Boxed, batches: &[Batch], rounds: u64) {
    const WAIT: Option<Duration> = Some(Duration::from_secs(5));
    let (sender, acks, receiver, reader) = ends;
    for round in 0..rounds {
        for batch in batches {
            sender.append(Kind::Batch, Flags::NONE, round, batch).unwrap();
            let last = sender.append(Kind::Batch, Flags::OUTPUT, round, batch).unwrap();
            while receiver.received() < last {
                receiver.poll(WAIT).unwrap();
            }
            receiver.push().unwrap();
            while sender.acks().received() < last {
                acks.poll(WAIT, || round).unwrap();
            }
            for _ in 0..2 {
                let Next::Frame(frame) = reader.next(WAIT).unwrap() else { panic!("no frame") };
                let position = access::<Batch>(frame.payload).unwrap().position.to_native();
                let sequence = frame.header.sequence;
                reader.progress().store(Executed { sequence, position, digest: 1 });
                reader.release();
            }
        }
    }
}

#[test]
fn append_flush_receive_replay_and_ack_allocate_nothing() {
    let batches = [batch(1, 0), batch(1, 1500), batch(1, 20_000)];
    for (name, mut ends) in [
        ("in process", in_process(0).0),
        ("TCP", over_tcp(&TcpConfig::default(), 0)),
        ("TCP, zero copy", over_tcp(&TcpConfig { zero_copy_from: 1, ..TcpConfig::default() }, 0)),
        (
            "TCP, registered buffers",
            over_tcp(
                &TcpConfig {
                    zero_copy_from: 1,
                    registered: true,
                    receive: Receive::Registered,
                    ..TcpConfig::default()
                },
                0,
            ),
        ),
        ("TCP, multishot", over_tcp(&TcpConfig { receive: Receive::Multishot, ..TcpConfig::default() }, 0)),
        ("encrypted in process", in_process_sealed().0),
        ("encrypted TCP", over_sealed_tcp()),
    ] {
        rounds(&mut ends, &batches, 20);
        let ((), allocated) = allocations(|| rounds(&mut ends, &batches, 50));
        assert_eq!(allocated, 0, "{name}");
    }
}

#[test]
fn heartbeats_allocate_nothing() {
    let key = HeartbeatKey::new(&PreSharedKey::new([1; 32]));
    let beat = Heartbeat {
        side: Side::Primary,
        standing: 1,
        received: 7,
        argument: 0,
        identity: [1; 8],
        generation: 1,
        counter: 1,
        stamp: 1,
        echo: 0,
    };
    let ((), allocated) = allocations(|| {
        let datagram = beat.encode(&key);
        assert_eq!(Heartbeat::decode(&datagram, &key), Ok(beat));
    });
    assert_eq!(allocated, 0);
}
