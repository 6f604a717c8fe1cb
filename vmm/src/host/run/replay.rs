//! Running again from a log file.

use std::collections::VecDeque;
use std::path::Path;

use kvm_ioctls::Kvm;
use rkyv::util::AlignedVec;
use thiserror::Error;

use super::logfile::{End, Head, LogFileError, LogReader, RecordKind};
use super::solo::{RunError, Summary, end_of, summary};
use crate::host::config::{Config, ConfigError};
use crate::host::guest::{BootFacts, Guest};
use crate::host::io::terminal::Terminal;
use crate::machine::cpu::cpuid::identity_bytes;
use crate::machine::output::{DiskRequest, Outputs, Packet};
use crate::machine::virtio::net::offload::Offloads;
use crate::machine::vm::{Machine, MachineError};
use crate::replay::batch::Traffic;
use crate::replay::divergence::{Difference, Divergence};
use crate::replay::follower::{Batches, FollowError, Follower};
use crate::replay::memory_sum::{LINE, first_difference};
use crate::replay::run::{Run, drive};
use crate::replay::trace::{ExitRecord, TraceError, TraceReader};

/// What can end a replay.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The log file cannot be read.
    #[error(transparent)]
    LogFile(#[from] LogFileError),
    /// The config in the log, or the one given, is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine cannot be built.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest is not the one that was recorded.
    #[error("the guest's {part} is not the one that was recorded\n  recorded: {recorded}\n  now:      {now}")]
    Identity {
        /// Which part.
        part: String,
        /// As recorded.
        recorded: String,
        /// As it is.
        now: String,
    },
    /// The replay went wrong.
    #[error(transparent)]
    Follow(#[from] FollowError<SourceError>),
    /// The replay is not what was recorded.
    #[error(transparent)]
    Divergence(#[from] Divergence),
}

/// What can be wrong with a log file while it is followed.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error(transparent)]
    LogFile(#[from] LogFileError),
    /// The trace is damaged.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// What a replay showed.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// What the run came to.
    pub summary: Summary,
    /// Exits compared one by one.
    pub exits_compared: u64,
    /// Whether the state at the end was compared. False if the recording was cut off, or nobody asked.
    pub end_compared: bool,
    /// Whether the recording has an end.
    pub whole: bool,
}

/// Reads ahead as far as the exit trace needs it.
struct FileBatches {
    reader: LogReader,
    verify: bool,
    ahead: VecDeque<AlignedVec>,
    current: AlignedVec,
    trace: TraceReader,
    exits: u64,
    end: Option<End>,
    over: bool,
}

impl FileBatches {
    /// Reads one record; false at the end.
    fn read(&mut self) -> Result<bool, SourceError> {
        if self.over {
            return Ok(false);
        }
        match self.reader.next_record()? {
            Some(RecordKind::Batch) => {
                let mut batch = AlignedVec::new();
                batch.extend_from_slice(self.reader.payload());
                self.ahead.push_back(batch);
            }
            Some(RecordKind::Trace) if self.verify => self.trace.add(self.reader.payload())?,
            Some(RecordKind::Trace) => {}
            Some(RecordKind::End) => {
                self.end = Some(self.reader.end()?);
                self.over = true;
            }
            Some(RecordKind::Head) => return Err(self.reader.damaged("a second head").into()),
            None => self.over = true,
        }
        Ok(true)
    }
}

impl Batches for FileBatches {
    type Error = SourceError;

    fn current(&self) -> &[u8] {
        &self.current
    }

    fn advance(&mut self) -> Result<bool, SourceError> {
        loop {
            if let Some(batch) = self.ahead.pop_front() {
                self.current = batch;
                return Ok(true);
            }
            if !self.read()? {
                return Ok(false);
            }
        }
    }

    fn recorded_exit(&mut self) -> Result<Option<ExitRecord>, SourceError> {
        if !self.verify {
            return Ok(None);
        }
        loop {
            if let Some(record) = self.trace.next_record()? {
                self.exits += 1;
                return Ok(Some(record));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }
}

/// Only what the guest types is seen again.
struct Echo(Terminal);

impl Outputs for Echo {
    fn packet(&mut self, _nic: u8, _packet: &Packet<'_>) {}

    fn offloads(&mut self, _nic: u8, _to_guest: Offloads) {}

    fn disk(&mut self, _request: DiskRequest<'_>) {}

    fn serial(&mut self, byte: u8) {
        self.0.write(&[byte]);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
}

/// Replays a log file; with `verify`, compares every exit and the state at the end.
///
/// # Errors
/// When the log cannot be read, the guest is another, or the replay differs.
pub fn replay(config: Option<&Config>, log: &Path, verify: bool) -> Result<Replayed, ReplayError> {
    let (reader, head) = LogReader::open(log)?;
    let recorded;
    let config = match config {
        Some(config) => config,
        None => {
            recorded = Config::parse(&head.config, Path::new(&head.config_path))?;
            &recorded
        }
    };
    let guest = Guest::load(config).map_err(RunError::Guest)?;
    let facts = BootFacts { seed: head.seed, wall_clock: head.wall_clock };
    let system = Kvm::new().map_err(RunError::Kvm)?;
    // The dirty log is on as it was in the recording: it decides how KVM maps memory.
    let machine = Machine::new(&system, &guest.machine(&facts, true))?;
    compare_identity(&head, &guest, &machine)?;
    let mut run = Run::new(machine);
    run.machine.replay_captured().map_err(MachineError::from)?;
    let batches = FileBatches {
        reader,
        verify,
        ahead: VecDeque::new(),
        current: AlignedVec::new(),
        trace: TraceReader::default(),
        exits: 0,
        end: None,
        over: false,
    };
    let terminal = Terminal::open(&config.serial.output).map_err(RunError::Terminal)?;
    let mut follower = Follower::new(&run, batches, Echo(terminal));
    let ended = drive(&mut run, &mut follower)?;
    while follower.batches.read().map_err(FollowError::Source)? {}
    let end = follower.batches.end.take();
    let replayed = Replayed {
        summary: summary(&run, ended, &Traffic::default(), follower.stops),
        exits_compared: follower.batches.exits,
        end_compared: verify && end.is_some(),
        whole: end.is_some(),
    };
    if let Some(end) = end.filter(|_| verify) {
        compare_end(&mut run, &end)?;
    }
    Ok(replayed)
}

fn compare_identity(head: &Head, guest: &Guest, machine: &Machine) -> Result<(), ReplayError> {
    let now = guest.identity(&identity_bytes(machine.cpuid()));
    for (name, digest, text) in &head.identity {
        let part = now.iter().find(|part| part.name == name.as_str());
        if part.is_none_or(|part| part.digest != *digest) {
            return Err(ReplayError::Identity {
                part: name.clone(),
                recorded: text.clone(),
                now: part.map_or_else(|| "absent".to_owned(), |part| part.text.clone()),
            });
        }
    }
    Ok(())
}

/// Compares the state at the end; names the first difference.
fn compare_end(run: &mut Run, expected: &End) -> Result<(), ReplayError> {
    let found = end_of(run)?;
    let differs = |what| {
        let divergence =
            Divergence { position: run.position(), rip: run.rip(), exit: run.last_exit_name(), what };
        Err(ReplayError::Divergence(divergence))
    };
    if found.point != expected.point {
        return differs(Difference::End { expected: expected.point, found: found.point });
    }
    if found.digest != expected.digest {
        return differs(Difference::Digest { expected: expected.digest, found: found.digest });
    }
    for ((part, wanted), (_, got)) in expected.sums.iter().zip(&found.sums) {
        if wanted != got {
            return differs(Difference::State { part: part.clone(), expected: *wanted, found: *got });
        }
    }
    match first_difference(&expected.pages, &found.pages) {
        Some((page, offset)) => differs(Difference::Memory { page, offset, len: LINE }),
        None => Ok(()),
    }
}
