//! The TCP server: sockets to connections.

use alloc::vec::Vec;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};

use crate::command::Engine;
use crate::connection::{Connection, Limits};
use crate::reply::Reply;

/// The port of Redis.
pub const PORT: u16 = 6379;

/// How long a peer may take to complete the handshake, or to close after the server did.
const IMPATIENCE: Duration = Duration::from_secs(10);

/// How long a peer may leave data or keep-alive probes unanswered.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often an idle peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A reply buffer larger than this is given back once it is empty.
const KEEP: usize = 64 * 1024;

/// Where the server lives and how much memory it may take for its sockets.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// IPv4 address and prefix length.
    pub address: Ipv4Cidr,
    /// Router to other networks.
    pub gateway: Option<Ipv4Address>,
    /// Connections that can be open or in the making at one time.
    pub sockets: usize,
    /// Bytes in each of a socket's two buffers.
    pub buffer: usize,
    /// Where TCP's sequence numbers start from.
    pub seed: u64,
}

struct Client {
    socket: SocketHandle,
    connection: Option<Connection>,
    /// Replies the socket has no room for yet: the first `sent` bytes have been handed over.
    backlog: Vec<u8>,
    sent: usize,
    /// When the server closed its half.
    closed_at: Option<Instant>,
}

/// A Redis server on one network interface.
pub struct Server {
    interface: Interface,
    sockets: SocketSet<'static>,
    clients: Vec<Client>,
    engine: Engine,
    scratch: Reply,
}

impl Server {
    /// A server that listens. Allocates all its sockets at once; if memory does not suffice for that, the
    /// allocation error is fatal: choose the settings by the memory there is.
    #[must_use]
    pub fn new(settings: &Settings, device: &mut (impl Device + ?Sized), engine: Engine) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress(settings.mac));
        let mut config = Config::new(mac);
        config.random_seed = settings.seed;
        let mut interface = Interface::new(config, device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list of a new interface is empty and has room.
            let _ = addresses.push(IpCidr::Ipv4(settings.address));
        });
        if let Some(gateway) = settings.gateway {
            // The table of a new interface is empty and has room.
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        let mut sockets = SocketSet::new(Vec::with_capacity(settings.sockets));
        let clients = (0..settings.sockets)
            .map(|_| {
                let buffer = || SocketBuffer::new(alloc::vec![0; settings.buffer]);
                let mut socket = Socket::new(buffer(), buffer());
                socket.set_nagle_enabled(false);
                socket.set_ack_delay(None);
                listen(&mut socket);
                let socket = sockets.add(socket);
                Client { socket, connection: None, backlog: Vec::new(), sent: 0, closed_at: None }
            })
            .collect();
        Self { interface, sockets, clients, engine, scratch: Reply::new() }
    }

    /// The engine behind the server.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes all frames that the device has, runs what they ask for, and hands the device all frames there
    /// are to send. `nanos`: virtual time since power-on.
    pub fn poll(&mut self, nanos: u64, device: &mut (impl Device + ?Sized)) {
        let now = Instant::from_micros(i64::try_from(nanos / 1000).unwrap_or(i64::MAX));
        self.engine.set_time(nanos);
        self.interface.poll_maintenance(now);
        loop {
            match self.interface.poll_ingress_single(now, device, &mut self.sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed | PollIngressSingleResult::SocketStateChanged => {}
            }
        }
        self.serve(now);
        while self.interface.poll_egress(now, device, &mut self.sockets) == PollResult::SocketStateChanged {}
    }

    fn serve(&mut self, now: Instant) {
        let limits = self.engine.limits();
        let mut listening = 0;
        for client in &mut self.clients {
            let socket = self.sockets.get_mut::<Socket>(client.socket);
            match socket.state() {
                State::Listen => listening += 1,
                State::SynReceived => {}
                State::Closed => {
                    client.forget(&mut self.engine);
                    listen(socket);
                }
                State::TimeWait => client.forget(&mut self.engine),
                _ => client.serve(socket, &mut self.engine, &mut self.scratch, limits, now),
            }
        }
        if listening < self.clients.len() / 4 {
            // Connections that are over wait for stray segments of theirs; new ones are worth more.
            for client in &self.clients {
                let socket = self.sockets.get_mut::<Socket>(client.socket);
                if socket.state() == State::TimeWait {
                    listen(socket);
                }
            }
        }
    }
}

/// Makes a socket listen that is closed or in TIME-WAIT.
fn listen(socket: &mut Socket<'_>) {
    socket.set_keep_alive(None);
    socket.set_timeout(Some(IMPATIENCE));
    // Fails only for port zero or an open socket.
    let _ = socket.listen(PORT);
}

impl Client {
    fn forget(&mut self, engine: &mut Engine) {
        if self.connection.take().is_some() {
            engine.counters.clients -= 1;
        }
        self.backlog = Vec::new();
        self.sent = 0;
        self.closed_at = None;
    }

    fn serve(
        &mut self,
        socket: &mut Socket<'_>,
        engine: &mut Engine,
        scratch: &mut Reply,
        limits: Limits,
        now: Instant,
    ) {
        if let Some(closed_at) = self.closed_at {
            if now >= closed_at + IMPATIENCE {
                socket.abort();
            }
            // What still comes in is of no interest, but must not fill the window.
            while socket.can_recv() && socket.recv(|bytes| (bytes.len(), ())).is_ok() {}
            return;
        }
        let connection = self.connection.get_or_insert_with(|| {
            engine.counters.connections += 1;
            engine.counters.clients += 1;
            socket.set_timeout(Some(PATIENCE));
            socket.set_keep_alive(Some(KEEP_ALIVE));
            Connection::with_limits(engine.counters.connections, limits)
        });
        loop {
            if !flush(&mut self.backlog, &mut self.sent, socket) {
                break;
            }
            let room = self.backlog.len() - self.sent <= limits.replies;
            if connection.closing() || !room || !(socket.can_recv() || connection.stalled()) {
                break;
            }
            if socket.can_recv() {
                let fed = socket.recv(|bytes| (connection.feed(bytes, engine, scratch), ()));
                if fed.is_err() {
                    break;
                }
            } else {
                connection.feed(&[], engine, scratch);
            }
            if !hand_over(scratch, &mut self.backlog, &mut self.sent, socket) {
                // No memory to keep the replies: the client cannot be answered.
                socket.abort();
                break;
            }
        }
        let done = connection.closing() || !socket.may_recv() && !connection.stalled();
        if done && self.backlog.is_empty() {
            socket.close();
            self.closed_at = Some(now);
        }
    }
}

/// Hands the backlog to the socket as far as it has room. `false`: the peer is gone.
fn flush(backlog: &mut Vec<u8>, sent: &mut usize, socket: &mut Socket<'_>) -> bool {
    while *sent < backlog.len() {
        match socket.send_slice(&backlog[*sent..]) {
            Ok(0) => return true,
            Ok(n) => *sent += n,
            Err(_) => return false,
        }
    }
    *sent = 0;
    if backlog.capacity() > 0 {
        *backlog = Vec::new();
    }
    true
}

/// Moves replies to the socket, and what it has no room for to the backlog. `false`: out of memory.
fn hand_over(scratch: &mut Reply, backlog: &mut Vec<u8>, sent: &mut usize, socket: &mut Socket<'_>) -> bool {
    if *sent > backlog.len() / 2 {
        backlog.drain(..core::mem::take(sent));
    }
    let mut bytes = scratch.as_bytes();
    while backlog.is_empty() && !bytes.is_empty() {
        match socket.send_slice(bytes) {
            Ok(0) => break,
            Ok(n) => bytes = &bytes[n..],
            Err(_) => bytes = &[],
        }
    }
    let kept = backlog.try_reserve(bytes.len()).is_ok();
    if kept {
        backlog.extend_from_slice(bytes);
    }
    scratch.clear(KEEP);
    kept
}

#[cfg(test)]
mod tests;
