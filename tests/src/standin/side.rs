//! One process of the stand-in, with the command line of `tandem`.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use tandem_arbiter::{Arbiter, Claim, Side as Seat, Token, Verdict};
use tandem_vmm::host::cli::args::{Cli, Command, VmArgs};
use tandem_vmm::host::config::{Config, vm_id};
use tandem_vmm::host::control::{OutputDelay, Role, Server, Status, StatusSource};

use super::carrier::Carrier;
use super::{MISDEED, Misdeed, ROOM};
use crate::random::fresh_seed;

/// The generation that is claimed when one side is lost.
const NEXT_GENERATION: u64 = 2;
/// Before an arbiter that is away is asked again.
const RETRY: Duration = Duration::from_millis(50);

/// Runs one side to its end.
#[must_use]
pub fn main() -> ExitCode {
    let (args, seat) = match Cli::parse().command {
        Command::Run(args) => (args, None),
        Command::Primary(args) => (args, Some(Seat::Primary)),
        Command::Backup(args) => (args, Some(Seat::Backup)),
        _ => return ExitCode::from(2),
    };
    match Side::open(&args, seat).and_then(Side::live) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say("ERROR", &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A log line as `tandem --log-format json` writes it, but for the time's form.
#[expect(clippy::print_stderr, reason = "a log line")]
fn say(level: &str, message: &str) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let timestamp = format!("{}.{:06}", now.as_secs(), now.subsec_micros());
    eprintln!("{}", serde_json::json!({ "timestamp": timestamp, "level": level, "message": message }));
}

#[derive(Debug)]
struct Face {
    status: Mutex<Status>,
    hand_over: Mutex<bool>,
}

impl StatusSource for Face {
    fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failover(&self) -> Result<String, String> {
        if self.status().role != Role::Primary {
            return Err("not a primary".to_owned());
        }
        *self.hand_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Ok("the backup takes over".to_owned())
    }
}

struct Peer {
    seat: Seat,
    socket: UdpSocket,
    address: SocketAddr,
    arbiter: PathBuf,
    token: Token,
    beat: Duration,
    patience: Duration,
    next_beat: Instant,
    /// When the peer was last heard.
    heard: Option<Instant>,
    /// A primary may send until then: the time of its last heartbeat that was echoed, and a lease.
    lease: Instant,
}

struct Side {
    config: Config,
    carrier: Carrier,
    face: Arc<Face>,
    misdeed: Option<Misdeed>,
    peer: Option<Peer>,
    start: Instant,
    _control: Option<Server>,
}

impl Side {
    fn open(args: &VmArgs, seat: Option<Seat>) -> anyhow::Result<Self> {
        let config = Config::load(&args.config)?;
        let room = std::env::var_os(ROOM).context("no room")?;
        let misdeed =
            std::env::var(MISDEED).ok().map(|name| name.parse()).transpose().map_err(anyhow::Error::msg)?;
        let tap = &config.nets.first().context("no [[net]]")?.tap;
        let carrier = Carrier::open(tap, room.as_ref())?;
        let role = if seat.is_none() { Role::Solo } else { Role::Joining };
        let status = Status { name: config.name.clone(), role, pid: std::process::id(), ..Status::default() };
        let face = Arc::new(Face { status: Mutex::new(status), hand_over: Mutex::new(false) });
        let control = args.overrides.control.as_deref();
        let control = control.map(|path| Server::start(path, Arc::clone(&face) as _)).transpose()?;
        let peer = seat.map(|seat| Peer::open(seat, &config)).transpose()?;
        Ok(Self { config, carrier, face, misdeed, peer, start: Instant::now(), _control: control })
    }

    fn role(&self) -> Role {
        self.face.status().role
    }

    fn become_(&self, role: Role, note: &str) {
        say("INFO", note);
        let mut status = self.face.status.lock().unwrap_or_else(PoisonError::into_inner);
        (status.role, status.note) = (role, Some(note.to_owned()));
        if role == Role::Live {
            status.generation = NEXT_GENERATION;
        }
        status.output_delay =
            Some(OutputDelay { count: 1, p50_us: 1.0, p99_us: 1.0, max_us: 1.0, ..OutputDelay::default() });
    }

    fn live(mut self) -> anyhow::Result<u8> {
        loop {
            self.wait();
            if let Some(status) = self.protocol()? {
                return Ok(status);
            }
            let role = self.role();
            let zombie = self.misdeed == Some(Misdeed::Zombie) && role == Role::Primary;
            let lease = self.peer.as_ref().map(|peer| peer.lease);
            let entitled = || match role {
                Role::Solo | Role::Live => true,
                Role::Primary => zombie || lease.is_some_and(|lease| Instant::now() < lease),
                _ => false,
            };
            self.carrier.carry(entitled)?;
        }
    }

    fn wait(&self) {
        let [tap, door] = self.carrier.descriptors();
        let beats = self.peer.as_ref().map_or(-1, |peer| peer.socket.as_raw_fd());
        let mut polls = [tap, door, beats].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: three valid entries.
        unsafe { libc::poll(polls.as_mut_ptr(), 3, 1) };
    }

    /// One turn of the protocol; the exit status when it is over.
    fn protocol(&mut self) -> anyhow::Result<Option<u8>> {
        let (now, role) = (Instant::now(), self.role());
        let Some(peer) = &mut self.peer else { return Ok(None) };
        let taken_over = peer.listen(now, self.start)?;
        if matches!(role, Role::Live) {
            return Ok(None);
        }
        peer.speak(now, self.start)?;
        match (role, peer.seat) {
            (Role::Joining, seat) if peer.heard.is_some() => {
                let role = if seat == Seat::Primary { Role::Primary } else { Role::Backup };
                self.become_(role, "the peer is there");
            }
            (Role::Primary, _)
                if std::mem::take(
                    &mut *self.face.hand_over.lock().unwrap_or_else(PoisonError::into_inner),
                ) =>
            {
                peer.socket.send_to(&[HAND_OVER; BEAT], peer.address)?;
                self.become_(Role::Halted, "handed over");
                return Ok(Some(0));
            }
            (Role::Backup, _)
                if self.misdeed == Some(Misdeed::Diverge)
                    && now > self.start + Duration::from_millis(300) =>
            {
                say("ERROR", "divergence at exit 1");
                return Ok(Some(3));
            }
            (Role::Primary | Role::Backup, _)
                if taken_over || peer.heard.is_some_and(|heard| now > heard + peer.patience) =>
            {
                self.become_(Role::Arbitrating, "the peer is silent");
            }
            (Role::Arbitrating, _) => return self.arbitrate(),
            _ => {}
        }
        Ok(None)
    }

    fn arbitrate(&mut self) -> anyhow::Result<Option<u8>> {
        let Some(peer) = &mut self.peer else { bail!("alone") };
        match peer.claim(&self.config.name) {
            Ok(Verdict::Won) => {
                if self.misdeed == Some(Misdeed::Forget) && peer.seat == Seat::Backup {
                    forget()?;
                }
                self.become_(Role::Live, "won generation 2");
                let mac = self.config.nets.first().context("no [[net]]")?.mac;
                self.carrier.announce(mac)?;
            }
            Ok(Verdict::Contended { .. }) => {}
            Ok(_) if self.misdeed == Some(Misdeed::Stubborn) => {
                self.become_(Role::Live, "lost, and does not care");
            }
            Ok(_) => {
                self.become_(Role::Halted, "lost generation 2");
                return Ok(Some(1));
            }
            Err(error) => {
                say("WARN", &format!("the arbiter cannot be reached: {error}"));
                std::thread::sleep(RETRY);
            }
        }
        Ok(None)
    }
}

/// A heartbeat is the time it was sent, in nanoseconds of its sender's clock; an echo repeats it.
const BEAT: usize = 9;
const PLAIN: u8 = 0;
const ECHO: u8 = 1;
const HAND_OVER: u8 = 2;

impl Peer {
    fn open(seat: Seat, config: &Config) -> anyhow::Result<Self> {
        let pair = config.pair()?;
        let (own, address) = match seat {
            Seat::Primary => (pair.primary, pair.listen),
            Seat::Backup => (pair.listen, pair.primary),
        };
        let socket = UdpSocket::bind(own).with_context(|| format!("cannot bind {own}"))?;
        socket.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Self {
            seat,
            socket,
            address,
            arbiter: pair.arbiter.clone(),
            token: Token(u128::from(fresh_seed()).to_le_bytes()),
            beat: pair.heartbeat,
            patience: pair.heartbeat * pair.missed,
            next_beat: now,
            heard: None,
            lease: now,
        })
    }

    /// Takes what the peer said. Whether it handed over.
    fn listen(&mut self, now: Instant, start: Instant) -> anyhow::Result<bool> {
        let mut beat = [0; BEAT];
        let mut handed_over = false;
        loop {
            match self.socket.recv_from(&mut beat) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(handed_over),
                // The answer to a heartbeat that nobody took.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error.into()),
            }
            let sent = Duration::from_nanos(u64::from_le_bytes(beat[1..].try_into().unwrap_or_default()));
            match (beat[0], self.seat) {
                (PLAIN, Seat::Backup) => {
                    beat[0] = ECHO;
                    self.send(&beat);
                    self.heard = Some(now);
                }
                (ECHO, Seat::Primary) => {
                    self.heard = self.heard.max(Some(start + sent));
                    self.lease = self.lease.max(start + sent + self.patience - self.beat);
                }
                (HAND_OVER, Seat::Backup) => handed_over = true,
                _ => {}
            }
        }
    }

    fn speak(&mut self, now: Instant, start: Instant) -> anyhow::Result<()> {
        if self.seat == Seat::Primary && now >= self.next_beat {
            self.next_beat = now + self.beat;
            let mut beat = [PLAIN; BEAT];
            beat[1..].copy_from_slice(&((now - start).as_nanos() as u64).to_le_bytes());
            self.send(&beat);
        }
        Ok(())
    }

    /// A cut cable is no error: the peer hears nothing, that is all.
    fn send(&self, beat: &[u8]) {
        let _ = self.socket.send_to(beat, self.address);
    }

    fn claim(&self, name: &str) -> Result<Verdict, tandem_arbiter::Error> {
        let (vm, token) = (vm_id(name), self.token);
        let claim = Claim { vm, generation: NEXT_GENERATION, side: self.seat, token, time_ms: 0 };
        Arbiter::open(&self.arbiter)?.claim(&claim)
    }
}

/// Empties the guest's store.
fn forget() -> anyhow::Result<()> {
    use std::io::{Read, Write};
    let room = std::fs::File::open(std::env::var_os(ROOM).context("no room")?)?;
    std::thread::spawn(move || -> io::Result<()> {
        crate::lab::move_this_thread_to(room.as_raw_fd())?;
        let mut stream = std::net::TcpStream::connect((crate::lab::GUEST, 6379))?;
        stream.write_all(b"FLUSHALL\r\n")?;
        stream.read_exact(&mut [0; 5])
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread in the room panicked"))??;
    Ok(())
}
