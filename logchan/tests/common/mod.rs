//! A batch like the one the machine logs, and a pair of channel ends over either transport.

#![allow(dead_code, missing_docs)]

use rkyv::{Archive, Serialize};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tandem_logchan::ack::AckState;
use tandem_logchan::backup::{self, LogReader, LogReceiver};
use tandem_logchan::channel::{self, Link};
use tandem_logchan::codec::SchemaDigest;
use tandem_logchan::handshake::{self, Agreed, Hello, Identity, PreSharedKey, Side};
use tandem_logchan::primary::{AckReceiver, LogSender};
use tandem_logchan::transport::sealed::{SealedDuplex, SealedReceive, SealedSend};
use tandem_logchan::transport::tcp::{self, TcpConfig};
use tandem_logchan::transport::{Duplex, ReceiveHalf, SendHalf, inproc};

pub(crate) const GENERATION: u64 = 7;

#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq)]
pub(crate) enum Entry {
    Time { nanos: u64 },
    Packet { nic: u8, at: u32, len: u32 },
    DiskDone { disk: u8, tag: u64 },
}

#[derive(Archive, Serialize, Debug, Default)]
pub(crate) struct Batch {
    pub position: u64,
    pub time: u64,
    pub entries: Vec<Entry>,
    pub blob: Vec<u8>,
}

pub(crate) fn batch(position: u64, blob: usize) -> Batch {
    Batch {
        position,
        time: position * 1000,
        entries: vec![
            Entry::Time { nanos: position },
            Entry::Packet { nic: 0, at: 0, len: blob as u32 },
            Entry::DiskDone { disk: 1, tag: position },
        ],
        blob: vec![position as u8; blob],
    }
}

pub(crate) type Boxed = (
    LogSender<Box<dyn SendHalf>>,
    AckReceiver<Box<dyn ReceiveHalf>>,
    LogReceiver<Box<dyn Duplex>>,
    LogReader,
);

fn ends(
    send: Box<dyn SendHalf>,
    receive: Box<dyn ReceiveHalf>,
    duplex: Box<dyn Duplex>,
    ring: usize,
) -> Boxed {
    let acks = Arc::new(AckState::new());
    let (receiver, reader) = backup::pair(duplex, GENERATION, ring);
    (
        LogSender::new(send, GENERATION, acks.clone()),
        AckReceiver::new(receive, GENERATION, acks),
        receiver,
        reader,
    )
}

pub(crate) fn over_tcp(config: &TcpConfig, ring: usize) -> Boxed {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = tcp::connect(listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let (send, receive) = tcp::primary(stream, config).unwrap();
    let duplex = tcp::backup(accepted, config).unwrap();
    ends(Box::new(send), Box::new(receive), Box::new(duplex), ring)
}

/// Hellos of two sides that belong together.
pub(crate) fn hello(side: Side, encrypt: bool) -> Hello {
    let identity = Identity::builder().part("kernel", "test", b"kernel").build();
    Hello { side, generation: GENERATION, encrypt, schema: SchemaDigest::of("test"), identity }
}

/// Connected streams after a handshake.
pub(crate) fn shaken(encrypt: bool) -> [(TcpStream, Agreed); 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shake = move |mut stream: TcpStream, side| {
        let key = PreSharedKey::new([7; 32]);
        let agreed =
            handshake::run(&mut stream, hello(side, encrypt), &key, Duration::from_secs(10)).unwrap();
        (stream, agreed)
    };
    let primary = std::thread::spawn(move || {
        shake(tcp::connect(address, Duration::from_secs(5)).unwrap(), Side::Primary)
    });
    let backup = shake(listener.accept().unwrap().0, Side::Backup);
    [primary.join().unwrap(), backup]
}

pub(crate) fn over_sealed_tcp() -> Boxed {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (config, patience) = (Link::from(TcpConfig::default()), Duration::from_secs(10));
    let primary = std::thread::spawn(move || {
        let stream = tcp::connect(address, patience).unwrap();
        let key = PreSharedKey::new([7; 32]);
        channel::primary(stream, hello(Side::Primary, true), &key, &config, patience).unwrap()
    });
    let (stream, key) = (listener.accept().unwrap().0, PreSharedKey::new([7; 32]));
    let there = channel::backup(stream, hello(Side::Backup, true), &key, &config, patience, 0).unwrap();
    let here = primary.join().unwrap();
    assert!(here.agreed.session.is_some() && there.agreed.session.is_some());
    (here.sender, here.acks, there.receiver, there.reader)
}

pub(crate) fn in_process_sealed() -> (Boxed, inproc::Faults, inproc::Faults) {
    let [(_, agreed), (_, agreed_there)] = shaken(true);
    let (ours, theirs) = (agreed.session.unwrap(), agreed_there.session.unwrap());
    let link = inproc::link(0).unwrap();
    let ends = ends(
        Box::new(SealedSend::new(link.send, ours.clone())),
        Box::new(SealedReceive::new(link.receive, ours)),
        Box::new(SealedDuplex::new(link.backup, theirs)),
        0,
    );
    (ends, link.log_faults, link.ack_faults)
}

pub(crate) fn in_process(ring: usize) -> (Boxed, inproc::Faults, inproc::Faults) {
    let link = inproc::link(0).unwrap();
    (
        ends(Box::new(link.send), Box::new(link.receive), Box::new(link.backup), ring),
        link.log_faults,
        link.ack_faults,
    )
}
