//! Over a real device, or soft RoCE in two network namespaces: `tests/rdma/check` finds the one and makes the others, says so
//! in `TANDEM_RDMA_BED`, and runs each test in a process of its own. Elsewhere they say that they are skipped; over a real
//! device, which is not the tests' to take down, so do those that cut the way between the two sides.

use super::cm::{Events, Id};
use super::conn::Connection;
use super::flow::{Credit, SENDS, SLOTS};
use super::verbs::{Queues, Write};
use super::*;
use crate::handshake::{self, Agreed, Hello, Identity, PreSharedKey};
use crate::transport::suite::{self, commit, receive};
use crate::transport::{Duplex, ReceiveHalf, SendHalf, tcp};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Child, Command};
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

/// For a namespace: the one in which the tests were started.
const HERE: &str = "-";

type Link = (RdmaSend, RdmaReceive, RdmaDuplex);

/// Two namespaces and the addresses in them.
#[derive(Clone, Debug)]
struct Bed {
    /// [`HERE`] twice: both sides use one real device, which loops back.
    namespaces: [String; 2],
    addresses: [SocketAddr; 2],
    /// The primary's network interface and RDMA device.
    interface: String,
    device: String,
}

impl Bed {
    /// From `TANDEM_RDMA_BED="NAMESPACE NAMESPACE ADDRESS ADDRESS INTERFACE DEVICE"`, primary first.
    fn find() -> Option<Self> {
        let Ok(bed) = std::env::var("TANDEM_RDMA_BED") else {
            println!("skipped: no TANDEM_RDMA_BED (run tests/rdma/check)");
            return None;
        };
        let words: Vec<&str> = bed.split(' ').collect();
        let [a, b, here, there, interface, device] = words[..] else { panic!("TANDEM_RDMA_BED={bed}") };
        Some(Self {
            namespaces: [a, b].map(str::to_owned),
            addresses: [here, there].map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)),
            interface: interface.to_owned(),
            device: device.to_owned(),
        })
    }

    /// A bed whose link may be cut and whose device may be removed.
    fn find_ours() -> Option<Self> {
        let ours = Self::find()?;
        if ours.namespaces[0] == HERE {
            println!("skipped: {} is not ours to take down", ours.device);
            return None;
        }
        Some(ours)
    }

    /// Moves this thread into a side's namespace.
    fn enter(&self, side: Side) {
        let name = &self.namespaces[usize::from(side == Side::Backup)];
        if name == HERE {
            return;
        }
        let path = format!("/run/netns/{name}");
        let namespace = std::fs::File::open(path).unwrap();
        // SAFETY: an open namespace.
        assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
    }

    fn listen(&self) -> TcpListener {
        self.enter(Side::Backup);
        TcpListener::bind(self.addresses[1]).unwrap()
    }

    fn primary(&self, address: SocketAddr, config: &RdmaConfig) -> (RdmaSend, RdmaReceive) {
        self.enter(Side::Primary);
        let mut stream = tcp::connect(address, PATIENCE).unwrap();
        let mut agreed = shake(&mut stream, Side::Primary);
        primary(stream, &mut agreed.keys, config).unwrap()
    }

    fn backup(&self, listener: &TcpListener, config: &RdmaConfig) -> RdmaDuplex {
        self.enter(Side::Backup);
        let mut stream = listener.accept().unwrap().0;
        let mut agreed = shake(&mut stream, Side::Backup);
        backup(stream, &mut agreed.keys, config).unwrap()
    }

    fn link(&self, config: RdmaConfig) -> Link {
        let bed = self.clone();
        let listener = self.listen();
        let address = listener.local_addr().unwrap();
        let primary = std::thread::spawn(move || bed.primary(address, &config));
        let duplex = self.backup(&listener, &config);
        let (send, receive) = primary.join().unwrap();
        (send, receive, duplex)
    }

    fn ip(&self, arguments: &[&str]) {
        let done = Command::new("ip").args(["-n", &self.namespaces[0]]).args(arguments).status().unwrap();
        assert!(done.success());
    }

    fn tc(&self, arguments: &[&str]) {
        let done =
            Command::new("tc").args(["-n", &self.namespaces[0], "qdisc"]).args(arguments).status().unwrap();
        assert!(done.success());
    }
}

fn shake(stream: &mut std::net::TcpStream, side: Side) -> Agreed {
    let hello = Hello {
        side,
        generation: 1,
        encrypt: false,
        schema: crate::codec::SchemaDigest::of("test"),
        identity: Identity::builder().build(),
    };
    handshake::run(stream, hello, &PreSharedKey::new([7; 32]), PATIENCE).unwrap()
}

/// Small, so that its limits are reached soon.
fn small(completion: Completion) -> RdmaConfig {
    RdmaConfig { send_buffer: 8 << 20, ring: 64 << 10, completion, ..RdmaConfig::default() }
}

const WAYS: [Completion; 3] =
    [Completion::Events, Completion::Adaptive(Duration::from_micros(300)), Completion::Busy];

macro_rules! suite {
    ($($test:ident)*) => {$(
        #[test]
        fn $test() {
            let Some(bed) = Bed::find() else { return };
            for completion in WAYS {
                println!("{completion:?}");
                suite::$test(bed.link(small(completion)));
            }
        }
    )*};
}

suite! {
    bytes_cross_both_ways
    pushes_in_a_row_each_send_and_lose_no_news
    a_wake_or_a_timeout_ends_the_wait
    a_stalled_peer_gets_everything_in_order_later
    replies_to_a_peer_that_does_not_read_are_kept_in_order
    a_dead_peer_is_an_error_not_a_signal
    what_nobody_takes_is_told
    a_watched_descriptor_ends_the_wait_as_long_as_it_is_readable
}

#[test]
fn a_device_answers_itself() {
    let Some(bed) = Bed::find() else { return };
    bed.enter(Side::Primary);
    let mut ports = ports().unwrap();
    println!("{ports:?}");
    ports.retain(|port| port.device == bed.device && port.active);
    assert!(ports.iter().any(|port| port.mtu >= 256 && !port.gids.is_empty()));
    println!("round trip {:?}", loopback(bed.addresses[0].ip(), PATIENCE).unwrap());
    // The other namespace's address is no address here, nor is one that is nobody's (RFC 5737).
    if bed.namespaces[1] != HERE {
        assert!(loopback(bed.addresses[1].ip(), PATIENCE).is_err());
    }
    assert!(loopback("192.0.2.1".parse().unwrap(), PATIENCE).is_err());
}

/// Waits until the half fails, and says how.
fn failure(half: &mut impl ReceiveHalf) -> TransportError {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match half.wait(Some(Duration::from_millis(100))) {
            Ok(_) => {
                let len = half.data().len();
                half.consume(len);
            }
            Err(error) => return error,
        }
        assert!(Instant::now() < deadline, "the failure was not noticed");
    }
}

/// Sends until that fails, and says how.
fn sending_fails(half: &mut impl SendHalf) -> TransportError {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if half.room().len() >= 64 {
            commit(half, &[0; 64]);
        }
        if let Err(error) = half.flush() {
            assert!(half.flush().is_err(), "once broken, always broken");
            return error;
        }
        assert!(Instant::now() < deadline, "the failure was not noticed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_end_in_good_order_leaves_the_way_back_open() {
    let Some(bed) = Bed::find() else { return };
    let (mut send, mut acks, mut log) = bed.link(small(Completion::Events));
    commit(&mut send, b"last");
    send.finish(PATIENCE).unwrap();
    assert_eq!(receive(&mut log, 4), b"last");
    assert!(matches!(log.wait(None), Err(TransportError::Closed)));
    assert!(log.reply(b"ack").unwrap());
    log.push().unwrap();
    assert_eq!(receive(&mut acks, 3), b"ack");
}

#[test]
fn more_messages_than_there_are_slots() {
    let Some(bed) = Bed::find() else { return };
    let (mut send, _acks, mut log) = bed.link(small(Completion::Events));
    let total = 3 * SLOTS;
    for n in 0..total {
        commit(&mut send, &n.to_le_bytes());
        send.flush().unwrap();
    }
    for n in 0..total {
        assert_eq!(receive(&mut log, 8), n.to_le_bytes());
        send.flush().unwrap();
    }
}

/// Every packet is lost, in both directions, and nobody is told.
#[test]
fn a_silent_cut_is_noticed_by_the_side_that_sends_and_can_be_mended() {
    let Some(bed) = Bed::find_ours() else { return };
    let (mut send, mut acks, mut log) = bed.link(small(Completion::Events));
    commit(&mut send, b"before");
    send.flush().unwrap();
    assert_eq!(receive(&mut log, 6), b"before");
    bed.tc(&["add", "dev", &bed.interface, "root", "netem", "loss", "100%"]);
    let start = Instant::now();
    commit(&mut send, b"behind");
    send.flush().unwrap();
    println!("after {:?}: {}", start.elapsed(), failure(&mut acks));
    println!("sending: {}", sending_fails(&mut send));
    assert!(log.reply(b"ack").unwrap());
    let pushed = log.push();
    println!("the other side: {pushed:?}, {}", failure(&mut log));
    bed.tc(&["del", "dev", &bed.interface, "root"]);
    drop((send, acks, log));
    let (mut send, _acks, mut log) = bed.link(small(Completion::Events));
    commit(&mut send, b"again");
    send.flush().unwrap();
    assert_eq!(receive(&mut log, 5), b"again");
}

#[test]
fn an_interface_that_goes_down_is_an_error_for_the_side_that_sends() {
    let Some(bed) = Bed::find_ours() else { return };
    let (mut send, mut acks, _log) = bed.link(small(Completion::Events));
    bed.ip(&["link", "set", &bed.interface, "down"]);
    println!("sending: {}", sending_fails(&mut send));
    println!("receiving: {}", failure(&mut acks));
}

#[test]
fn a_device_that_is_removed_under_load_is_an_error() {
    let Some(bed) = Bed::find_ours() else { return };
    let (mut send, mut acks, mut log) = bed.link(small(Completion::Events));
    let reader = std::thread::spawn(move || failure(&mut log).to_string());
    let (namespace, device) = (bed.namespaces[0].clone(), bed.device.clone());
    let remover = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        Command::new("ip")
            .args(["netns", "exec", &namespace, "rdma", "link", "del", &device])
            .status()
            .unwrap()
    });
    println!("sending: {}", sending_fails(&mut send));
    println!("receiving: {}", failure(&mut acks));
    // The kernel takes the device away when its last user has gone.
    drop((send, acks));
    println!("the other side: {}", reader.join().unwrap());
    assert!(remover.join().unwrap().success());
}

/// The other process of [`a_killed_peer_is_noticed`].
#[test]
#[ignore = "started by another test"]
fn child_that_is_killed() {
    let Some(bed) = Bed::find() else { return };
    let address = std::env::var("TANDEM_RDMA_PEER").unwrap().parse().unwrap();
    let (mut send, _acks) = bed.primary(address, &small(Completion::Events));
    loop {
        if send.room().len() >= 1024 {
            commit(&mut send, &[1; 1024]);
        }
        send.flush().unwrap();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_peer_is_noticed_and_what_it_wrote_is_there() {
    let Some(bed) = Bed::find() else { return };
    let listener = bed.listen();
    let mut child = Killed(
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "transport::rdma::tests::child_that_is_killed"])
            .env("TANDEM_RDMA_PEER", listener.local_addr().unwrap().to_string())
            .spawn()
            .unwrap(),
    );
    let mut log = bed.backup(&listener, &small(Completion::Events));
    assert_eq!(receive(&mut log, 4096), [1; 4096]);
    // It fills the ring; then it dies.
    std::thread::sleep(Duration::from_millis(300));
    child.0.kill().unwrap();
    let start = Instant::now();
    let mut taken = 0;
    let error = loop {
        match log.wait(Some(PATIENCE)) {
            Ok(wake) => {
                assert!(wake.data, "silence instead of the end");
                assert!(log.data().iter().all(|byte| *byte == 1));
                taken += log.data().len();
                let len = log.data().len();
                log.consume(len);
            }
            Err(error) => break error,
        }
    };
    println!("after {:?} and {taken} bytes: {error}", start.elapsed());
    assert!(taken >= 32 << 10, "only {taken} bytes of the ring were handed out");
}

#[test]
fn a_stranger_without_the_token_gets_no_connection() {
    let Some(bed) = Bed::find() else { return };
    bed.enter(Side::Backup);
    let events = Events::open().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let (listener, port) = Id::listen(&events, bed.addresses[1]).unwrap();
    let stranger = bed.clone();
    let stranger = std::thread::spawn(move || {
        stranger.enter(Side::Primary);
        let mut to = stranger.addresses[1];
        to.set_port(port);
        let connect = |token: &[u8]| {
            let events = Events::open().unwrap();
            let id = Id::resolve(&events, stranger.addresses[0], to, deadline).unwrap();
            let queues = Queues::new(id, SENDS as u32, SLOTS as u32).unwrap();
            let outcome = queues.id().connect(&events, token, deadline);
            (queues, events, outcome)
        };
        for guess in [&b"0123456789abcdeX"[..], b"0123", b""] {
            let (queues, events, outcome) = connect(guess);
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("REJECTED"), "{error}");
            drop(queues);
            drop(events);
        }
        let (queues, events, outcome) = connect(b"0123456789abcdef");
        outcome.unwrap();
        drop(queues);
        drop(events);
    });
    let id = events.request(b"0123456789abcdef", deadline).unwrap();
    let queues = Queues::new(id, SENDS as u32, SLOTS as u32).unwrap();
    queues.id().accept(&events, deadline).unwrap();
    stranger.join().unwrap();
    drop(queues);
    drop(listener);
}

mod breaches;
mod damage;
mod huge;
mod placed;
