//! The backup's vCPU thread: follows the log, and leads when the backup goes live.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::Kvm;
use tandem_logchan::backup::{LogReader, Next};
use tandem_logchan::frame::{HEADER_LEN, Kind};
use tandem_logchan::progress::{Executed, Progress};

use super::PairError;
use super::clock::now;
use super::gated::GateSender;
use super::lead::{Leader, lead};
use super::log::PairLog;
use super::shared::{News, Order, Shared};
use crate::host::guest::{BootFacts, Guest};
use crate::host::tap::Tap;
use crate::host::vcpu::clock::HostClock;
use crate::host::vcpu::inputs::HostInputs;
use crate::machine::output::{Dropped, Outputs};
use crate::machine::vm::{Machine, MachineError};
use crate::replay::batch::{Kind as LogKind, Traffic};
use crate::replay::divergence::Difference;
use crate::replay::follower::{Batches, FollowError, Follower};
use crate::replay::recorder::Pace;
use crate::replay::run::{Ended, Run, drive};
use crate::role::event::Divergence;

/// How long to sleep for log before looking at the orders again.
const LOOK: Duration = Duration::from_millis(50);

/// What the vCPU thread of a backup needs.
pub(super) struct Following {
    pub(super) guest: Guest,
    pub(super) system: Kvm,
    pub(super) reader: LogReader,
    pub(super) inputs: HostInputs,
    pub(super) gate: GateSender,
    pub(super) taps: Vec<Arc<Tap>>,
    pub(super) pace: Pace,
    pub(super) shared: Arc<Shared>,
}

/// Batches off the channel, read in place.
struct ChannelBatches {
    reader: LogReader,
    shared: Arc<Shared>,
    /// Number of the frame that is being executed.
    sequence: u64,
    /// Number of the last frame whose memory was given back.
    released: u64,
    progress: Arc<Progress>,
}

impl ChannelBatches {
    fn note(&self, sequence: u64, position: u64, digest: u64) {
        self.progress.store(Executed { sequence, position, digest });
    }

    /// Shows how far the run has come, and what of the log led there.
    fn publish(&self, run: &Run, mut traffic: Traffic) {
        traffic.bytes[LogKind::Framing.index()] += self.sequence * HEADER_LEN as u64;
        self.shared.counters.update(run, &traffic);
    }

    /// Gives the last frame back and waits for the next. `None`: the log is over, or the run is to end.
    fn next(&mut self) -> Option<Kind> {
        if self.sequence > self.released {
            self.reader.release();
            self.released = self.sequence;
        }
        loop {
            if self.shared.order() == Order::Halt {
                return None;
            }
            match self.reader.next(Some(LOOK)) {
                Ok(Next::Frame(frame)) => {
                    self.sequence = frame.header.sequence;
                    return Some(frame.header.kind);
                }
                Ok(Next::Empty) => {}
                Ok(Next::End) => return None,
                Err(error) => {
                    tracing::error!(%error, "the log ring is damaged");
                    return None;
                }
            }
        }
    }
}

impl Batches for ChannelBatches {
    type Error = Infallible;

    fn current(&self) -> &[u8] {
        self.reader.payload()
    }

    fn advance(&mut self) -> Result<bool, Infallible> {
        let before = self.progress.load();
        loop {
            match self.next() {
                Some(Kind::Batch) => return Ok(true),
                // Nothing to execute: it counts as executed at once.
                Some(_) => self.note(self.sequence, before.position, before.digest),
                None => return Ok(false),
            }
        }
    }

    fn executed(&mut self, horizon: u64, run: &Run, traffic: &Traffic) {
        self.note(self.sequence, horizon, run.digest());
        self.publish(run, *traffic);
    }
}

/// Follows until the log ends, and then does as ordered. Call on the vCPU thread.
pub(super) fn follow(following: Following) -> Result<(), PairError> {
    let Following { guest, system, reader, inputs, gate, taps, pace, shared } = following;
    let progress = Arc::clone(reader.progress());
    let mut batches =
        ChannelBatches { reader, shared: Arc::clone(&shared), sequence: 0, released: 0, progress };
    let Some(facts) = boot_facts(&mut batches) else {
        shared.tell(News::Drained);
        return Ok(());
    };
    let machine = Machine::new(&system, &guest.machine(&facts, true))?;
    let mut run = Run::new(machine);
    run.machine.replay_captured().map_err(MachineError::from)?;
    batches.note(batches.sequence, 0, 0);
    let mut follower = Follower::new(&run, batches, Dropped);
    let ended = match drive(&mut run, &mut follower) {
        Ok(ended) => ended,
        Err(FollowError::Divergence(divergence)) => {
            tracing::error!("{divergence}; this backup will not go live");
            let (expected, found) = match divergence.what {
                Difference::Digest { expected, found } => (expected, found),
                _ => (0, run.digest()),
            };
            let position = divergence.position.point;
            shared.tell(News::Diverged(Divergence { position, expected, found }));
            return Ok(());
        }
        Err(error) => {
            shared.tell(News::Diverged(Divergence {
                position: run.point(),
                expected: 0,
                found: run.digest(),
            }));
            return Err(error.into());
        }
    };
    follower.batches.publish(&run, *follower.traffic());
    if let Ended::Off(event) = ended {
        tracing::info!(?event, "the guest ended");
        let sequence = follower.batches.sequence;
        follower.batches.note(sequence, run.point(), run.digest());
        shared.tell(News::Ended(sequence));
        return Ok(());
    }
    drop(follower);
    shared.tell(News::Drained);
    if shared.wait_for_other(&[Order::Run, Order::Wait, Order::Stop]) != Order::Alone {
        return Ok(());
    }
    let log = PairLog::new(gate, None, Arc::clone(&shared), taps);
    go_live(run, inputs, log, pace, &shared)
}

/// The first frame of the log says what the machine boots with.
fn boot_facts(batches: &mut ChannelBatches) -> Option<BootFacts> {
    match batches.next() {
        Some(Kind::State) => {
            let facts = BootFacts::decode(batches.reader.payload());
            if facts.is_none() {
                tracing::error!("the log does not begin with the facts of a boot");
            }
            facts
        }
        _ => None,
    }
}

fn go_live(
    mut run: Run,
    mut inputs: HostInputs,
    mut log: PairLog,
    pace: Pace,
    shared: &Arc<Shared>,
) -> Result<(), PairError> {
    // The guest's time goes on from the last logged reading, and so does its TSC.
    run.machine.record_captured().map_err(MachineError::from)?;
    inputs.set_clock(HostClock::continuing(run.machine.now()));
    // What was in flight may or may not have reached the disk: it is done again, in its order.
    for request in run.machine.disk_requests() {
        log.gate.disk(&request, 0, now());
    }
    for (nic, to_guest) in run.machine.offloads() {
        log.offloads(nic, to_guest);
    }
    let recorder = Leader::taking_over(&run, inputs, log, pace);
    lead(&mut run, recorder, pace, shared)
}
