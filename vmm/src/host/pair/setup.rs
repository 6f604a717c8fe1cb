//! Setting up a side: sockets, handshake, threads.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::Kvm;
use tandem_arbiter::{Side as ArbiterSide, Token};
use tandem_logchan::channel::{self, BackupEnds, OpenError, PrimaryEnds};
use tandem_logchan::codec::SchemaDigest;
use tandem_logchan::handshake::{Hello, Identity, PreSharedKey, Side as ChannelSide};
use tandem_logchan::transport::tcp;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::beacon::Beacon;
use super::burst::Burst;
use super::claims::Claims;
use super::clock::now;
use super::follow::{Following, follow};
use super::gated::{Exits, GateReceiver, GateSender, gate};
use super::lead::{Leader, lead};
use super::link::{link, patience};
use super::log::PairLog;
use super::passage::Passage;
use super::shared::{News, Order, Shared};
use super::side::{self, Channel, SideThread};
use super::status::{self, Board};
use super::{FIRST_GENERATION, PairEnded, PairError, host};
use crate::host::config::{Config, LogAck, LogTransport, PairConfig, SerialInput, read_key};
use crate::host::control::{Role, Server};
use crate::host::guest::{BootFacts, Guest};
use crate::host::io::disk::Disks;
use crate::host::io::feed::Feed;
use crate::host::io::pump::Pump;
use crate::host::io::terminal::Terminal;
use crate::host::run::solo::{open_taps, pace};
use crate::host::shutdown::Shutdown;
use crate::host::vcpu::clock::HostClock;
use crate::host::vcpu::inputs::{HostInputs, InputSource, inputs};
use crate::machine::cpu::cpuid::identity_bytes;
use crate::machine::time::VirtualTime;
use crate::machine::vm::Machine;
use crate::replay::batch::SCHEMA;
use crate::replay::run::Run;
use crate::role::action::Actions;
use crate::role::event::Event;
use crate::role::joining::Start;
use crate::role::side::State;
use crate::role::{Side, Timing};

/// Between two attempts to reach the backup.
const RETRY: Duration = Duration::from_millis(200);

/// Outputs that may be bound at the gate.
const GATE: usize = 1024;

/// Room for inputs on their way, per source, in bytes.
const INPUT_RING: usize = 4 << 20;

/// What both sides begin with.
struct Parts {
    guest: Guest,
    system: Kvm,
    key: PreSharedKey,
    identity: Identity,
    timing: Timing,
    claims: Claims,
    claimed: u64,
}

fn parts(config: &Config, pair: &PairConfig, side: ArbiterSide) -> Result<Parts, PairError> {
    let timing = timing(pair);
    timing.validate()?;
    let key = PreSharedKey::new(*read_key(&pair.key)?);
    let guest = Guest::load(config)?;
    let system = Kvm::new().map_err(PairError::Kvm)?;
    let cpuid = guest.cpuid(&system)?;
    let identity = guest
        .identity(&identity_bytes(&cpuid))
        .into_iter()
        .fold(Identity::builder(), |builder, part| {
            builder.part(part.name, &part.text, &part.digest.to_le_bytes())
        })
        .part("name", &config.name, config.name.as_bytes());
    // Or one side would wait for a connection that the other does not make.
    let identity = match (pair.transport, pair.ack) {
        (LogTransport::Tcp, _) => identity,
        (LogTransport::Rdma, LogAck::Read) => identity.part("transport", "rdma", b"rdma"),
        // A backup that does not know of it would not read what only lies in its memory.
        (LogTransport::Rdma, LogAck::Placed) => identity.part("transport", "rdma, placed", b"rdma, placed"),
    }
    .build();
    let token = Token(BootFacts::draw()?.seed[..16].try_into().unwrap_or_default());
    let (claims, claimed) = Claims::open(pair.arbiter.clone(), config.vm_id(), side, token)?;
    Ok(Parts { guest, system, key, identity, timing, claims, claimed })
}

fn timing(pair: &PairConfig) -> Timing {
    let default = Timing::default();
    let timing = Timing {
        heartbeat: pair.heartbeat.as_nanos() as u64,
        missed: pair.missed,
        early: default.early.min(pair.missed.saturating_sub(1)).max(1),
        lag_bound: pair.lag_bound.as_nanos() as u64,
        placed: pair.ack == LogAck::Placed,
        ..default
    };
    // Who allows for more silence has slower hosts: the other waits are five times as long at least.
    let waits = timing.silence().saturating_mul(5);
    let (ack_patience, hand_over_patience) =
        (default.ack_patience.max(waits), default.hand_over_patience.max(waits));
    Timing { ack_patience, hand_over_patience, ..timing }
}

fn hello(side: ChannelSide, pair: &PairConfig, identity: &Identity) -> Hello {
    Hello {
        side,
        generation: FIRST_GENERATION,
        encrypt: pair.encrypt,
        schema: SchemaDigest::of(SCHEMA),
        identity: identity.clone(),
    }
}

/// The wiring between the two threads of a side.
struct Wiring {
    shared: Arc<Shared>,
    inputs: HostInputs,
    feed: InputSource,
    completions: InputSource,
    wake: Arc<EventFd>,
    hand_over: Arc<AtomicBool>,
}

fn wiring() -> Result<Wiring, PairError> {
    let clock = HostClock::continuing(VirtualTime::ZERO);
    let (inputs, [feed, completions]) = inputs::<2>(clock, INPUT_RING);
    let shared = Arc::new(Shared::new(inputs.bell()));
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(host("make an eventfd"))?);
    let waker = Arc::clone(&wake);
    shared.set_waker(Box::new(move || {
        // The count cannot overflow.
        let _ = waker.write(1);
    }));
    Ok(Wiring { shared, inputs, feed, completions, wake, hand_over: Arc::new(AtomicBool::new(false)) })
}

fn exits(config: &Config) -> Result<Exits, PairError> {
    Ok(Exits {
        taps: open_taps(config)?,
        disks: None,
        terminal: Terminal::open(&config.serial.output).map_err(host("open the serial line's output"))?,
    })
}

fn new_gate(config: &Config) -> Result<(GateSender, GateReceiver), PairError> {
    gate(config.disks.len()).map_err(|_| host("make a histogram")(std::io::ErrorKind::Other.into()))
}

/// Runs a primary until it ends.
///
/// # Errors
/// What it came upon.
pub fn primary(config: &Config, shutdown: &Shutdown) -> Result<PairEnded, PairError> {
    let pair = config.pair()?;
    let parts = parts(config, pair, ArbiterSide::Primary)?;
    let facts = BootFacts::draw()?;
    let machine = Machine::new(&parts.system, &parts.guest.machine(&facts, true))?;
    let mut exits = exits(config)?;
    let wiring = wiring()?;

    let board = board(config, pair.listen, &wiring, &parts.timing);
    let _server = serve(config, &board)?;
    let disks = Disks::start(&config.disks, wiring.completions, Arc::clone(&wiring.shared.lease))?;
    let disks = Arc::clone(exits.disks.insert(Arc::new(disks)));
    tracing::info!(backup = %pair.listen, "waiting for the backup");
    let PrimaryEnds { sender, acks: receiver, state: acks, agreed } = connect(pair, &parts, shutdown)?;
    tracing::info!(backup = %pair.listen, generation = agreed.generation, "paired");
    board.lead(Arc::clone(&acks));

    let start = Start { generation: agreed.generation, claimed: Some(parts.claimed), alone: false };
    let (mut side, actions) = Side::primary(parts.timing, GATE, start)?;
    let mut actions = open_generation(&mut side, actions, &parts.claims);
    let beacon = open_beacon(pair, ChannelSide::Primary, &parts)?;

    let (gate_sender, gate_receiver) = new_gate(config)?;
    let mut log = PairLog::new(gate_sender, Some(sender), Arc::clone(&wiring.shared), exits.taps.clone());
    log.open_disks(disks);
    if let Some(acks) = receiver.glance() {
        let burst = Burst::new(exits.taps.clone()).map_err(host("write into taps by io_uring"))?;
        log.open_passage(Passage::new(burst, acks, Arc::clone(&wiring.shared)));
    }
    if side.state() == State::Joining {
        actions = side.on(now(), Event::Joined);
        // The backup takes the first frame of the log as its welcome: not before the protocol counts it.
        log.send_state(&facts.encode())?;
    }

    let shared = Arc::clone(&wiring.shared);
    let (inputs, pace) = (wiring.inputs, pace(config));
    let vcpu = spawn_vcpu(&shared, move |shared| {
        if shared.wait_for_other(&[Order::Wait]) == Order::Halt {
            return Ok(());
        }
        let mut run = Run::new(machine);
        let mut inputs = inputs;
        inputs.set_clock(HostClock::continuing(VirtualTime::ZERO));
        let recorder = Leader::new(&run, inputs, log, pace);
        lead(&mut run, recorder, pace, shared)
    })?;

    let accepting = Arc::new(AtomicBool::new(false));
    let _pump = pump(config, &exits, wiring.feed, &accepting)?;
    let thread = SideThread {
        side,
        channel: Channel::Acks(receiver),
        generation: agreed.generation,
        placed: parts.timing.placed,
        acks: Some(acks),
        shared: Arc::clone(&shared),
        beacon,
        claims: parts.claims,
        accepting,
        gate: gate_receiver,
        exits,
        disks: Vec::new(),
        completions: None,
        macs: config.nets.iter().map(|net| net.mac).collect(),
        board,
        shutdown: shutdown.clone(),
        wake: wiring.wake,
        hand_over: wiring.hand_over,
    };
    finish(side::run(thread, &actions), &shared, vcpu)
}

/// Runs a backup until it ends.
///
/// # Errors
/// What it came upon.
pub fn backup(config: &Config, shutdown: &Shutdown) -> Result<PairEnded, PairError> {
    let pair = config.pair()?;
    let parts = parts(config, pair, ArbiterSide::Backup)?;
    let exits = exits(config)?;
    let wiring = wiring()?;
    let listener = TcpListener::bind(pair.listen).map_err(address(pair.listen, "listen"))?;

    let board = board(config, pair.primary, &wiring, &parts.timing);
    let _server = serve(config, &board)?;
    tracing::info!(listen = %pair.listen, "waiting for the primary");
    let (BackupEnds { mut receiver, mut reader, agreed }, peer) = accept(&listener, pair, &parts, shutdown)?;
    tracing::info!(primary = %peer, generation = agreed.generation, "paired");
    if parts.timing.placed {
        // No thread of this side has to be awake for an ack.
        receiver.count_as_placed();
    } else {
        reader.poll_for(pair.replay_poll);
    }
    drop(listener);
    let beacon = open_beacon(pair, ChannelSide::Backup, &parts)?;

    board.follow(Arc::clone(reader.progress()));
    let (gate_sender, gate_receiver) = new_gate(config)?;
    // The primary is welcome when its log begins: until then it may still be asking the arbiter.
    while receiver.received() == 0 {
        receiver.poll(Some(RETRY))?;
        if shutdown.requested() {
            return Err(PairError::Cancelled);
        }
    }
    let mut side = Side::backup(parts.timing, GATE, Some(parts.claimed))?;
    let actions = side.on(now(), Event::Welcomed { generation: agreed.generation });

    let following = Following {
        guest: parts.guest,
        system: parts.system,
        reader,
        inputs: wiring.inputs,
        gate: gate_sender,
        taps: exits.taps.clone(),
        pace: pace(config),
        shared: Arc::clone(&wiring.shared),
    };
    let shared = Arc::clone(&wiring.shared);
    let vcpu = spawn_vcpu(&shared, move |_| follow(following))?;

    let accepting = Arc::new(AtomicBool::new(false));
    let _pump = pump(config, &exits, wiring.feed, &accepting)?;
    let thread = SideThread {
        side,
        channel: Channel::Log(receiver),
        generation: agreed.generation,
        placed: parts.timing.placed,
        acks: None,
        shared: Arc::clone(&shared),
        beacon,
        claims: parts.claims,
        accepting,
        gate: gate_receiver,
        exits,
        disks: config.disks.clone(),
        completions: Some(wiring.completions),
        macs: config.nets.iter().map(|net| net.mac).collect(),
        board,
        shutdown: shutdown.clone(),
        wake: wiring.wake,
        hand_over: wiring.hand_over,
    };
    finish(side::run(thread, &actions), &shared, vcpu)
}

fn open_beacon(pair: &PairConfig, side: ChannelSide, parts: &Parts) -> Result<Beacon, PairError> {
    let (own, key, peer) = match side {
        ChannelSide::Primary => (pair.primary, "primary", pair.listen),
        ChannelSide::Backup => (pair.listen, "listen", pair.primary),
    };
    Beacon::open(own, peer, side, parts.identity.short(), &parts.key).map_err(address(own, key))
}

/// An error of an address of `[pair]`.
fn address(address: SocketAddr, key: &'static str) -> impl Fn(std::io::Error) -> PairError {
    move |source| PairError::Address { address, key, source }
}

/// The primary claims its generation before it starts the guest.
fn open_generation(side: &mut Side, actions: Actions, claims: &Claims) -> Actions {
    use crate::role::action::Action;
    let mut actions = actions;
    loop {
        let Some(generation) = actions.iter().find_map(|action| match action {
            Action::Claim { generation } => Some(generation),
            _ => None,
        }) else {
            if side.state() != State::Arbitrating {
                return actions;
            }
            std::thread::sleep(RETRY);
            actions = side.on(now(), Event::Tick);
            continue;
        };
        let waiter = std::thread::current();
        claims.ask(generation, move || waiter.unpark());
        let (generation, verdict) = loop {
            if let Some(answer) = claims.answer() {
                break answer;
            }
            std::thread::park_timeout(RETRY);
        };
        actions = side.on(now(), Event::Verdict { generation, verdict });
    }
}

/// Opens the log channel to the backup, once it is there.
fn connect(pair: &PairConfig, parts: &Parts, shutdown: &Shutdown) -> Result<PrimaryEnds, PairError> {
    let mut told = String::new();
    loop {
        if shutdown.requested() {
            return Err(PairError::Cancelled);
        }
        match tcp::connect(pair.listen, RETRY) {
            Ok(stream) => {
                let hello = hello(ChannelSide::Primary, pair, &parts.identity);
                return channel::primary(stream, hello, &parts.key, &link(pair), patience(pair))
                    .map_err(|source| PairError::Channel { peer: pair.listen, source });
            }
            Err(error) => {
                let why = chain(&error);
                if why != told {
                    tracing::info!(backup = %pair.listen, why, "the backup is not there yet; trying on");
                    told = why;
                }
                let _ = shutdown.wait(RETRY);
            }
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Opens the log channel to the first primary that comes and is the right one.
fn accept(
    listener: &TcpListener,
    pair: &PairConfig,
    parts: &Parts,
    shutdown: &Shutdown,
) -> Result<(BackupEnds, SocketAddr), PairError> {
    loop {
        let mut polls = [listener.as_raw_fd(), shutdown.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two valid entries.
        unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
        if shutdown.requested() {
            return Err(PairError::Cancelled);
        }
        if polls[0].revents == 0 {
            continue;
        }
        let (stream, peer) = listener.accept().map_err(host("accept the primary"))?;
        let hello = hello(ChannelSide::Backup, pair, &parts.identity);
        let room = pair.log_buffer as usize;
        match channel::backup(stream, hello, &parts.key, &link(pair), patience(pair), room) {
            Ok(ends) => return Ok((ends, peer)),
            // Anybody can connect; the right primary may still come.
            Err(OpenError::Handshake(error)) => tracing::warn!(%peer, %error, "a peer was refused"),
            Err(source) => return Err(PairError::Channel { peer, source }),
        }
    }
}

/// Feeds the machine from the host's devices, once it accepts.
fn pump(
    config: &Config,
    exits: &Exits,
    source: InputSource,
    accepting: &Arc<AtomicBool>,
) -> Result<Pump, PairError> {
    let typed = config.serial.input == SerialInput::Stdin;
    let feed = Feed::new(exits.taps.clone(), typed, source, Arc::clone(accepting));
    Pump::start(feed, None, || ()).map_err(host("start the I/O thread"))
}

fn board(config: &Config, peer: SocketAddr, wiring: &Wiring, timing: &Timing) -> Arc<Board> {
    let first = status::first(config, Role::Joining, peer.to_string());
    Arc::new(Board::new(
        first,
        Arc::clone(&wiring.shared),
        Arc::clone(&wiring.hand_over),
        Arc::clone(&wiring.wake),
        timing.silence(),
    ))
}

fn serve(config: &Config, board: &Arc<Board>) -> Result<Option<Server>, PairError> {
    Ok(match &config.control_socket {
        Some(path) => Some(Server::start(path, Arc::clone(board) as Arc<_>)?),
        None => None,
    })
}

type Vcpu = JoinHandle<Result<(), PairError>>;

fn spawn_vcpu(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Arc<Shared>) -> Result<(), PairError> + Send + 'static,
) -> Result<Vcpu, PairError> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("tandem-vcpu".to_owned())
        .spawn(move || {
            let result = work(&shared);
            if let Err(error) = &result {
                tracing::error!(%error, "the machine cannot go on");
                shared.tell(News::Failed);
            }
            result
        })
        .map_err(host("start the vCPU thread"))
}

/// Ends the vCPU thread, and says how it all ended.
fn finish(
    ended: Result<PairEnded, PairError>,
    shared: &Arc<Shared>,
    vcpu: Vcpu,
) -> Result<PairEnded, PairError> {
    shared.give(Order::Halt);
    // A panic has been reported; the side's own end says more.
    if let Ok(Err(error)) = vcpu.join() {
        return Err(error);
    }
    ended
}
