//! Running alone, with or without a log file.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kvm_ioctls::Kvm;
use thiserror::Error;

use super::logfile::{End, Head, LogFileError, LogWriter, RecordKind};
use super::open_outputs::OpenOutputs;
use super::status;
use crate::host::config::{Config, SerialInput};
use crate::host::control::ServeError;
use crate::host::guest::{BootFacts, Guest, GuestError};
use crate::host::io::disk::{DiskError, Disks};
use crate::host::io::feed::Feed;
use crate::host::io::pump::Pump;
use crate::host::io::terminal::Terminal;
use crate::host::leased::LeaseEnd;
use crate::host::shutdown::Shutdown;
use crate::host::tap::{Tap, TapError};
use crate::host::vcpu::clock::HostClock;
use crate::host::vcpu::counters::SharedCounters;
use crate::host::vcpu::inputs::{HostInputs, VcpuBell, inputs};
use crate::host::vcpu::kick::Kicker;
use crate::machine::cpu::cpuid::identity_bytes;
use crate::machine::output::{DiskRequest, Notice, Outputs, Packet, PowerEvent};
use crate::machine::virtio::net::offload::Offloads;
use crate::machine::vm::{Machine, MachineError};
use crate::replay::batch::{Batch, SCHEMA, Traffic};
use crate::replay::memory_sum::PageSum;
use crate::replay::recorder::{Log, Pace, Recorder};
use crate::replay::run::{Ended, Run, drive};
use crate::replay::stop::{StopCounts, StopError};
use crate::replay::trace::{ExitRecord, TraceWriter};

/// Room for inputs on their way, per source, in bytes.
const INPUT_RING: usize = 4 << 20;

/// Bytes of exit trace that are collected before they are packed.
const TRACE_BLOCK: usize = 1 << 20;

/// What can end a run.
#[derive(Debug, Error)]
pub enum RunError {
    /// /dev/kvm cannot be used.
    #[error("cannot open /dev/kvm; `tandem check` says what is missing")]
    Kvm(#[source] kvm_ioctls::Error),
    /// The guest cannot be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A forced stop failed.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The log file cannot be written.
    #[error(transparent)]
    LogFile(#[from] LogFileError),
    /// There is no control socket.
    #[error(transparent)]
    Control(#[from] ServeError),
    /// The guest's terminal cannot be opened.
    #[error("cannot open the serial line's output")]
    Terminal(#[source] io::Error),
    /// The kernel has no thread, timer or descriptor left.
    #[error("cannot {0}")]
    Host(&'static str, #[source] io::Error),
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How it ended: the guest's own doing, or `None` if it was asked to stop.
    pub power: Option<PowerEvent>,
    /// Points in all.
    pub points: u64,
    /// Deterministic exits by kind.
    pub exits: Vec<(&'static str, u64)>,
    /// How many times the guest was given a page to read its clock from.
    pub clock_pages: u64,
    /// How many times a network driver was asked not to notify of what it sends.
    pub transmit_polls: u64,
    /// Log traffic by kind.
    pub traffic: Traffic,
    /// Forced stops.
    pub stops: StopCounts,
}

/// What to record, and when to stop.
#[derive(Clone, Copy, Debug)]
pub struct Recording<'a> {
    /// The log file.
    pub log: &'a Path,
    /// Stop after so much time.
    pub stop_after: Option<Duration>,
    /// Stop after so many exits.
    pub exits: Option<u64>,
}

/// The log of a machine alone: a file, or nothing.
struct SoloLog {
    outputs: OpenOutputs,
    file: Option<LogWriter>,
    trace: TraceWriter,
    exits_left: Option<u64>,
    bell: Arc<VcpuBell>,
    counters: Arc<SharedCounters>,
}

impl Outputs for SoloLog {
    fn packet(&mut self, nic: u8, packet: &Packet<'_>) {
        self.outputs.packet(nic, packet);
    }

    fn offloads(&mut self, nic: u8, to_guest: Offloads) {
        self.outputs.offloads(nic, to_guest);
    }

    fn disk(&mut self, request: DiskRequest<'_>) {
        self.outputs.disk(request);
    }

    fn serial(&mut self, byte: u8) {
        self.outputs.serial(byte);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.outputs.console(bytes);
    }

    fn notice(&mut self, notice: Notice) {
        self.outputs.notice(notice);
    }
}

impl SoloLog {
    fn write_trace(&mut self) -> Result<(), RunError> {
        if let Some(file) = &mut self.file
            && !self.trace.is_empty()
        {
            file.record(RecordKind::Trace, &self.trace.take())?;
        }
        Ok(())
    }
}

impl Log for SoloLog {
    type Error = RunError;

    fn enabled(&self) -> bool {
        self.file.is_some()
    }

    fn urgent(&self) -> bool {
        false
    }

    fn waiting(&self) -> bool {
        false
    }

    fn scarce(&self) -> bool {
        // A recording is kept.
        true
    }

    fn commit(&mut self, batch: &Batch) -> Result<usize, RunError> {
        match &mut self.file {
            Some(file) => Ok(file.batch(batch)?),
            None => Ok(0),
        }
    }

    fn idle(&mut self) {
        self.outputs.terminal.flush();
    }

    fn observe(&mut self, run: &Run, traffic: &Traffic) {
        self.counters.update(run, traffic);
    }

    fn exit(&mut self, record: &ExitRecord) -> Result<(), RunError> {
        if self.file.is_some() {
            self.trace.push(record);
            if self.trace.len() >= TRACE_BLOCK {
                self.write_trace()?;
            }
        }
        if let Some(left) = &mut self.exits_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.bell.leave();
            }
        }
        Ok(())
    }
}

/// The time limits that a config asks for. Who lets an input wait for longer lets entries wait for company for
/// longer too, in proportion.
#[must_use]
pub fn pace(config: &Config) -> Pace {
    let (bound, default) = (config.machine.tick_bound.as_nanos() as u64, Pace::default());
    let coalesce = default.coalesce.max(bound * default.coalesce / default.bound);
    Pace { bound, coalesce, ..default }
}

/// Opens the taps of the config.
///
/// # Errors
/// When one is missing or in use.
pub fn open_taps(config: &Config) -> Result<Vec<Arc<Tap>>, TapError> {
    config.nets.iter().map(|net| Tap::open(&net.tap).map(Arc::new)).collect()
}

/// Runs a VM without a peer until it ends or `shutdown` fires.
///
/// # Errors
/// What the host or the machine came upon.
pub fn run(
    config: &Config,
    recording: Option<&Recording<'_>>,
    shutdown: &Shutdown,
) -> Result<Summary, RunError> {
    let guest = Guest::load(config)?;
    let facts = BootFacts::draw()?;
    let system = Kvm::new().map_err(RunError::Kvm)?;
    let machine = Machine::new(&system, &guest.machine(&facts, recording.is_some()))?;
    let file = match recording {
        Some(recording) => Some(LogWriter::create(recording.log, &head(config, &guest, &facts, &machine)?)?),
        None => None,
    };
    let mut run = Run::new(machine);

    let (inputs, [feed, completions]) = inputs::<2>(HostClock::continuing(run.machine.now()), INPUT_RING);
    let bell = inputs.bell();
    let taps = open_taps(config)?;
    let outputs = OpenOutputs {
        taps: taps.clone(),
        disks: Disks::start(&config.disks, completions, Arc::new(LeaseEnd::never()))?,
        terminal: Terminal::open(&config.serial.output).map_err(RunError::Terminal)?,
    };
    let accepting = Arc::new(AtomicBool::new(true));
    let feed = Feed::new(taps, config.serial.input == SerialInput::Stdin, feed, accepting);
    let leave = Arc::clone(&bell);
    let _pump = Pump::start(feed, Some(shutdown), move || leave.leave())
        .map_err(|e| RunError::Host("start the I/O thread", e))?;
    let _timer = recording
        .and_then(|r| r.stop_after)
        .map(|limit| leave_after(limit, Arc::clone(&bell)))
        .transpose()?;
    let _kicker = Kicker::start(run.machine.run_area(), config.machine.tick_bound / 2)
        .map_err(|e| RunError::Host("start the vCPU's timer", e))?;

    let counters = Arc::new(SharedCounters::default());
    let _server = status::serve(config, recording.is_some(), &counters)?;
    let log = SoloLog {
        outputs,
        file,
        trace: TraceWriter::default(),
        exits_left: recording.and_then(|r| r.exits),
        bell,
        counters,
    };
    let mut recorder = Recorder::new(&run, inputs, log, pace(config));
    let ended = drive(&mut run, &mut recorder)?;
    finish(&mut run, recorder, ended)
}

/// Asks the vCPU thread to leave after `limit`.
fn leave_after(limit: Duration, bell: Arc<VcpuBell>) -> Result<LeaveTimer, RunError> {
    let stop = Shutdown::new().map_err(|e| RunError::Host("start a timer", e))?;
    let cancelled = stop.clone();
    let thread = std::thread::Builder::new()
        .name("tandem-timer".to_owned())
        .spawn(move || {
            if !cancelled.wait(limit) {
                bell.leave();
            }
        })
        .map_err(|e| RunError::Host("start a timer", e))?;
    Ok(LeaveTimer { stop, thread: Some(thread) })
}

struct LeaveTimer {
    stop: Shutdown,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for LeaveTimer {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported already.
            let _ = thread.join();
        }
    }
}

fn head(config: &Config, guest: &Guest, facts: &BootFacts, machine: &Machine) -> Result<Head, RunError> {
    let identity = guest.identity(&identity_bytes(machine.cpuid()));
    let again = |e| RunError::Host("read the config file again for the log", e);
    Ok(Head {
        schema: SCHEMA.to_owned(),
        config: std::fs::read_to_string(&config.file).map_err(again)?,
        config_path: std::path::absolute(&config.file).map_err(again)?.display().to_string(),
        identity: identity.into_iter().map(|part| (part.name.to_owned(), part.digest, part.text)).collect(),
        seed: facts.seed,
        wall_clock: facts.wall_clock,
    })
}

fn finish(
    run: &mut Run,
    mut recorder: Recorder<HostInputs, SoloLog>,
    ended: Ended,
) -> Result<Summary, RunError> {
    recorder.commit_end(run)?;
    recorder.log.write_trace()?;
    recorder.log.outputs.terminal.flush();
    let summary = summary(run, ended, recorder.traffic(), recorder.stops);
    if let Some(file) = recorder.log.file.take() {
        file.finish(&end_of(run)?)?;
    }
    Ok(summary)
}

/// What a run came to.
#[must_use]
pub fn summary(run: &Run, ended: Ended, traffic: &Traffic, stops: StopCounts) -> Summary {
    Summary {
        power: match ended {
            Ended::Off(event) => Some(event),
            Ended::Left => None,
        },
        points: run.point(),
        exits: run.exits_by_name().collect(),
        clock_pages: run.machine.clock_pages(),
        transmit_polls: run.machine.transmit_polls(),
        traffic: *traffic,
        stops,
    }
}

/// The state of a run that has been left, for comparison.
///
/// # Errors
/// When KVM fails.
pub fn end_of(run: &mut Run) -> Result<End, MachineError> {
    let mut pages = Vec::new();
    run.machine.ram().for_each_page(|number, page| pages.extend(PageSum::of(number, page)))?;
    Ok(End { point: run.point(), digest: run.digest(), sums: run.machine.sums()?, pages })
}
