use super::*;
use alloc::collections::VecDeque;
use proptest::prelude::*;
use smoltcp::phy::{ChecksumCapabilities, DeviceCapabilities, Medium, RxToken, TxToken};
use std::format;
use std::vec;

/// One end of an Ethernet cable.
#[derive(Default)]
struct Cable {
    arrived: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
    checksums: ChecksumCapabilities,
}

struct Arrived(Vec<u8>);
struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, use_frame: F) -> T {
        use_frame(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<T, F: FnOnce(&mut [u8]) -> T>(self, len: usize, fill: F) -> T {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Sending<'_>)> {
        Some((Arrived(self.arrived.pop_front()?), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum = self.checksums.clone();
        capabilities
    }
}

const SOCKETS: usize = 160;
const MILLISECOND: u64 = 1_000_000;

/// A server, a machine with clients, and a cable between them.
struct World {
    server: Server,
    server_end: Cable,
    clients: Interface,
    client_end: Cable,
    sockets: SocketSet<'static>,
    nanos: u64,
    /// Every so many frames one is lost. Zero: none.
    loses: usize,
    carried: usize,
    /// Everything the server sent.
    log: Vec<Vec<u8>>,
}

impl Server {
    fn in_state(&self, state: State) -> usize {
        self.clients
            .iter()
            .filter(|client| self.sockets.get::<Socket>(client.socket).state() == state)
            .count()
    }
}

impl World {
    fn new() -> Self {
        Self::with_checksums(&ChecksumCapabilities::default())
    }

    fn with_checksums(checksums: &ChecksumCapabilities) -> Self {
        let end = || Cable { checksums: checksums.clone(), ..Cable::default() };
        let (mut server_end, mut client_end) = (end(), end());
        let settings = Settings {
            mac: [0x52, 0x54, 0, 0, 0, 2],
            address: Ipv4Cidr::new(Ipv4Address::new(10, 77, 0, 2), 24),
            gateway: None,
            sockets: SOCKETS,
            buffer: 4096,
            seed: 7,
        };
        let server = Server::new(&settings, &mut server_end, Engine::new());
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress([0x52, 0x54, 0, 0, 0, 1])));
        let mut clients = Interface::new(config, &mut client_end, Instant::ZERO);
        clients.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(Ipv4Address::new(10, 77, 0, 1), 24))).unwrap();
        });
        Self {
            server,
            server_end,
            clients,
            client_end,
            sockets: SocketSet::new(vec![]),
            nanos: 0,
            loses: 0,
            carried: 0,
            log: vec![],
        }
    }

    fn step(&mut self, nanos: u64) {
        self.nanos += nanos;
        let now = Instant::from_micros((self.nanos / 1000) as i64);
        self.clients.poll(now, &mut self.client_end, &mut self.sockets);
        self.carry();
        self.server.poll(self.nanos, &mut self.server_end);
        self.log.extend(self.server_end.sent.iter().cloned());
        self.carry();
    }

    fn carry(&mut self) {
        let mut lost = || {
            self.carried += 1;
            self.loses > 0 && self.carried.is_multiple_of(self.loses)
        };
        self.server_end.arrived.extend(self.client_end.sent.drain(..).filter(|_| !lost()));
        self.client_end.arrived.extend(self.server_end.sent.drain(..).filter(|_| !lost()));
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 16 * 1024]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.connect(self.clients.context(), (Ipv4Address::new(10, 77, 0, 2), PORT), port).unwrap();
        self.sockets.add(socket)
    }

    fn client(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends a request and waits for so many bytes of reply.
    fn ask(&mut self, handle: SocketHandle, request: &[u8], reply: usize) -> Vec<u8> {
        let (mut sent, mut got) = (0, vec![]);
        for _ in 0..100_000 {
            let client = self.client(handle);
            if sent < request.len() && client.can_send() {
                sent += client.send_slice(&request[sent..]).unwrap();
            }
            if client.can_recv() {
                client.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            if got.len() >= reply {
                return got;
            }
            self.step(MILLISECOND);
        }
        panic!("no whole reply: {:?}", std::string::String::from_utf8_lossy(&got));
    }
}

fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
    [head.as_bytes(), value, b"\r\n"].concat()
}

#[test]
fn a_client_is_served() {
    let mut world = World::new();
    let client = world.connect(50_000);
    assert_eq!(world.ask(client, b"PING\r\n", 7), b"+PONG\r\n");
    assert_eq!(world.ask(client, &set("k", b"value"), 5), b"+OK\r\n");
    assert_eq!(world.ask(client, b"GET k\r\nDBSIZE\r\n", 15), b"$5\r\nvalue\r\n:1\r\n");
    assert_eq!(world.server.engine().counters.clients, 1);
}

#[test]
fn many_clients_connect_at_once() {
    let mut world = World::new();
    let clients: Vec<SocketHandle> = (0..150).map(|i| world.connect(50_000 + i)).collect();
    for _ in 0..10 {
        world.step(MILLISECOND);
    }
    for (index, client) in clients.into_iter().enumerate() {
        assert_eq!(world.client(client).state(), State::Established, "{index}");
        assert_eq!(world.ask(client, b"INCR n\r\n", 4), format!(":{}\r\n", index + 1).as_bytes());
    }
}

#[test]
fn large_values_pass_a_cable_that_loses_frames() {
    let mut world = World::new();
    let client = world.connect(50_000);
    world.ask(client, b"PING\r\n", 7);
    world.loses = 13;
    let value: Vec<u8> = (0..200_000u32).map(|i| (i * 7 / 5) as u8).collect();
    assert_eq!(world.ask(client, &set("k", &value), 5), b"+OK\r\n");
    let reply = world.ask(client, b"GET k\r\n", 200_000 + 11);
    assert_eq!(reply, [b"$200000\r\n", value.as_slice(), b"\r\n"].concat());
}

#[test]
fn replies_wait_for_a_client_that_does_not_read() {
    let mut world = World::new();
    let client = world.connect(50_000);
    world.ask(client, &set("k", &[b'x'; 3000]), 5);
    // A hundred replies are far more than all buffers hold.
    let replies = world.ask(client, &b"GET k\r\n".repeat(100), 100 * 3009);
    assert_eq!(replies.len(), 100 * 3009);
    assert!(replies.chunks(3009).all(|reply| reply.starts_with(b"$3000\r\nx") && reply.ends_with(b"x\r\n")));
}

#[test]
fn quitting_and_nonsense_end_in_a_close_after_the_reply() {
    for (request, reply) in [
        (&b"QUIT\r\nPING\r\n"[..], &b"+OK\r\n"[..]),
        (b"*x\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    ] {
        let mut world = World::new();
        let client = world.connect(50_000);
        assert_eq!(world.ask(client, request, reply.len()), reply);
        for _ in 0..5 {
            world.step(MILLISECOND);
        }
        assert!(!world.client(client).may_recv());
        world.client(client).close();
        for _ in 0..30 {
            world.step(1000 * MILLISECOND);
        }
        assert_eq!(world.server.engine().counters.clients, 0);
    }
}

#[test]
fn more_connections_than_sockets_come_and_go() {
    let mut world = World::new();
    for port in 0..2 * SOCKETS as u16 {
        let client = world.connect(50_000 + port);
        assert_eq!(world.ask(client, b"PING\r\nQUIT\r\n", 12), b"+PONG\r\n+OK\r\n", "{port}");
        world.client(client).close();
        for _ in 0..3 {
            world.step(MILLISECOND);
        }
        world.sockets.remove(client);
    }
    assert_eq!(world.server.engine().counters.clients, 0);
}

#[test]
fn clients_that_vanish_make_room_again() {
    let mut world = World::new();
    let clients: Vec<SocketHandle> = (0..SOCKETS as u16).map(|i| world.connect(50_000 + i)).collect();
    for _ in 0..5 {
        world.step(MILLISECOND);
    }
    assert_eq!(world.server.engine().counters.clients, SOCKETS);
    // All gone without a word: the server finds out by asking.
    clients.into_iter().for_each(|client| drop(world.sockets.remove(client)));
    for _ in 0..400 {
        world.nanos += 1000 * MILLISECOND;
        world.server.poll(world.nanos, &mut world.server_end);
        world.server_end.sent.clear();
    }
    assert_eq!(world.server.engine().counters.clients, 0);
    let client = world.connect(60_000);
    assert_eq!(world.ask(client, b"PING\r\n", 7), b"+PONG\r\n");
}

#[test]
fn half_open_connections_make_room_again() {
    let mut world = World::new();
    let clients: Vec<SocketHandle> = (0..SOCKETS as u16).map(|i| world.connect(50_000 + i)).collect();
    // Address resolution and the first frame of each get through, no more.
    while world.server.in_state(State::SynReceived) < SOCKETS {
        world.step(0);
    }
    clients.into_iter().for_each(|client| drop(world.sockets.remove(client)));
    world.client_end.arrived.clear();
    for _ in 0..15 {
        world.nanos += 1000 * MILLISECOND;
        world.server.poll(world.nanos, &mut world.server_end);
        world.server_end.sent.clear();
    }
    assert_eq!(world.server.in_state(State::Listen), SOCKETS);
    let client = world.connect(60_000);
    assert_eq!(world.ask(client, b"PING\r\n", 7), b"+PONG\r\n");
}

#[test]
fn an_idle_client_stays() {
    let mut world = World::new();
    let client = world.connect(50_000);
    world.ask(client, b"PING\r\n", 7);
    for _ in 0..1000 {
        world.step(1000 * MILLISECOND);
    }
    assert_eq!(world.ask(client, b"PING\r\n", 7), b"+PONG\r\n");
}

#[test]
fn the_same_input_makes_the_same_frames() {
    let run = || {
        let mut world = World::new();
        world.loses = 9;
        for port in 0..5 {
            let client = world.connect(50_000 + port);
            world.ask(client, b"INCR n\r\nSADD s a b c d\r\nSPOP s\r\nKEYS *\r\n", 10);
        }
        world.log
    };
    assert_eq!(run(), run());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_frames_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), any::<u16>()), 1..60),
        junk in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..20),
    ) {
        // Without checksums, which would catch nearly all of the damage.
        let mut world = World::with_checksums(&ChecksumCapabilities::ignored());
        let client = world.connect(50_000);
        let mut damage = damage.into_iter();
        for step in 0..40 {
            let socket = world.client(client);
            if socket.can_send() {
                socket.send_slice(&set("k", b"value")).unwrap();
            }
            if step == 30 {
                socket.close();
            }
            world.step(500 * MILLISECOND);
            if step > 2 && let Some((index, byte, cut)) = damage.next() {
                for frame in &mut world.server_end.arrived {
                    let at = index.index(frame.len());
                    frame[at] ^= byte;
                    frame.truncate(14 + usize::from(cut % 200));
                }
            }
        }
        world.server_end.arrived.extend(junk);
        world.step(MILLISECOND);
    }
}
