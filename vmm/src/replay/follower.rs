//! Follows: applies the inputs of a log at their points, and compares digests.

use rkyv::rancor::Error as RkyvError;
use tandem_kmod_brain::abi::Pause;
use thiserror::Error;

use crate::machine::cpu::capture::CaptureError;
use crate::machine::memory::PAGE_SIZE;
use crate::machine::output::Outputs;
use crate::machine::time::VirtualTime;
use crate::machine::vm::MachineError;

use super::batch::{ArchivedBatch, Traffic};
use super::captured::Captured;
use super::divergence::{Difference, Divergence};
use super::player::{Event, LogError, Player};
use super::run::{Driver, Flow, Phase, Run};
use super::shipped::Shipped;
use super::stop::{PART_PAGES, StopCounts, StopError, Unpacker, is_last, load};
use super::trace::ExitRecord;

/// Where batches come from: a file, or the channel's receiving ring.
pub trait Batches {
    /// What can go wrong.
    type Error;
    /// The bytes of the current batch's archive, aligned to 16; empty before the first.
    fn current(&self) -> &[u8];
    /// Drops the current batch and waits for the next. False: there will be none, or the run is asked
    /// to leave.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn advance(&mut self) -> Result<bool, Self::Error>;
    /// Called when the run has reached the horizon of the current batch, for acks and status.
    fn executed(&mut self, _horizon: u64, _run: &Run, _traffic: &Traffic) {}
    /// The next recorded exit, where the log has them.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn recorded_exit(&mut self) -> Result<Option<ExitRecord>, Self::Error> {
        Ok(None)
    }
}

/// Why a log could not be followed.
#[derive(Debug, Error)]
pub enum FollowError<E: std::error::Error + 'static> {
    /// The replay is not what was recorded.
    #[error(transparent)]
    Divergence(Box<Divergence>),
    /// The log is damaged.
    #[error("the log is damaged")]
    Log(#[from] LogError),
    /// A batch is no valid archive.
    #[error("the log is damaged: a batch is no valid archive")]
    Archive,
    /// A forced stop could not be applied.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The kernel module failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The log cannot be read.
    #[error(transparent)]
    Source(E),
}

/// Follows a log.
#[derive(Debug)]
pub struct Follower<B, O> {
    /// Where batches come from.
    pub batches: B,
    /// Where outputs go; nowhere, for a backup.
    pub outputs: O,
    player: Player,
    /// Values of captured instructions that the guest has not executed yet.
    captured: Captured,
    /// Whether the current batch was validated and begun.
    begun: bool,
    /// Whether the digest at the current batch's horizon was compared.
    compared: bool,
    /// Parts of a forced stop whose last has not come yet. They count only together.
    parts: Vec<Vec<u8>>,
    /// What forced stops have shipped so far.
    shipped: Shipped,
    /// Where they are unpacked.
    unpacker: Unpacker,
    /// Forced stops applied.
    pub stops: StopCounts,
}

enum Next {
    Applied,
    Reached,
    Ended,
}

/// Reads the current batch in place. It was validated when it was begun.
fn archived(bytes: &[u8]) -> &ArchivedBatch {
    // SAFETY: `Follower::fetch` validated these very bytes with `rkyv::access` before the first use, and
    // nothing can have changed them since: they are borrowed from the source.
    unsafe { rkyv::access_unchecked::<ArchivedBatch>(bytes) }
}

impl<B: Batches, O: Outputs> Follower<B, O>
where
    B::Error: std::error::Error + 'static,
{
    /// A follower of a log that begins where `run` stands.
    #[must_use]
    pub fn new(run: &Run, batches: B, outputs: O) -> Self {
        Self {
            batches,
            outputs,
            player: Player::new(run.point(), run.machine.now()),
            captured: Captured::new(run.machine.tsc()),
            begun: false,
            compared: true,
            parts: Vec::new(),
            shipped: Shipped::default(),
            unpacker: Unpacker::default(),
            stops: StopCounts::default(),
        }
    }

    /// The point up to which all inputs are known.
    #[must_use]
    pub const fn horizon(&self) -> u64 {
        self.player.horizon()
    }

    /// The log followed so far, without what a transport puts around batches.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        self.player.traffic()
    }

    /// Virtual time at the end of the log read so far is at least this.
    #[must_use]
    pub fn time(&self, run: &Run) -> VirtualTime {
        run.machine.now()
    }

    fn diverged(run: &Run, what: Difference) -> FollowError<B::Error> {
        FollowError::Divergence(Box::new(Divergence {
            position: run.position(),
            rip: run.rip(),
            exit: run.last_exit_name(),
            what,
        }))
    }

    fn fetch(&mut self, run: &Run) -> Result<bool, FollowError<B::Error>> {
        self.finish_batch(run)?;
        if !self.batches.advance().map_err(FollowError::Source)? {
            return Ok(false);
        }
        let batch = rkyv::access::<ArchivedBatch, RkyvError>(self.batches.current())
            .map_err(|_| FollowError::Archive)?;
        self.player.begin(batch)?;
        let values = self.captured.add(&batch.captured).map_err(|at| LogError::Captured { at })?;
        self.player.count_captured(values, batch.captured.len());
        self.begun = true;
        self.compared = false;
        Ok(true)
    }

    /// Compares the digest at the end of a batch. The run stands at its horizon, or idles right behind
    /// it, which adds nothing to the digest.
    fn finish_batch(&mut self, run: &Run) -> Result<(), FollowError<B::Error>> {
        if self.compared {
            return Ok(());
        }
        self.compared = true;
        let expected = archived(self.batches.current()).digest.to_native();
        if expected != run.digest() {
            return Err(Self::diverged(run, Difference::Digest { expected, found: run.digest() }));
        }
        self.batches.executed(self.player.horizon(), run, self.player.traffic());
        Ok(())
    }

    /// Applies the next input of the current point, or tells that there is none.
    fn apply_next(&mut self, run: &mut Run) -> Result<Next, FollowError<B::Error>> {
        loop {
            if self.begun {
                let batch = archived(self.batches.current());
                match self.player.peek(batch)? {
                    Some((point, event)) if point == run.point() => {
                        let Event::Input(input) = event else {
                            let expected = point;
                            return Err(Self::diverged(
                                run,
                                Difference::End { expected, found: run.point() },
                            ));
                        };
                        run.machine.apply(&input, &mut self.outputs)?;
                        self.player.take(point, &event);
                        return Ok(Next::Applied);
                    }
                    Some((point, _)) if point < run.point() => {
                        return Err(Self::diverged(
                            run,
                            Difference::End { expected: point, found: run.point() },
                        ));
                    }
                    Some(_) => return Ok(Next::Reached),
                    None if self.player.horizon() >= run.point() => return Ok(Next::Reached),
                    None => {}
                }
            }
            if !self.fetch(run)? {
                return Ok(Next::Ended);
            }
        }
    }
}

impl<B: Batches, O: Outputs> Driver for Follower<B, O>
where
    B::Error: std::error::Error + 'static,
{
    type Error = FollowError<B::Error>;

    fn outputs(&mut self) -> &mut dyn Outputs {
        &mut self.outputs
    }

    fn exited(&mut self, run: &Run, record: &ExitRecord) -> Result<(), Self::Error> {
        if let Some(expected) = self.batches.recorded_exit().map_err(FollowError::Source)?
            && let Some((name, expected, found)) = expected.first_difference(record)
        {
            return Err(Self::diverged(run, Difference::Word { name, expected, found }));
        }
        Ok(())
    }

    fn point(&mut self, run: &mut Run) -> Result<Flow, Self::Error> {
        loop {
            match self.apply_next(run)? {
                Next::Applied => {}
                Next::Reached => break,
                Next::Ended => return Ok(Flow::Leave),
            }
        }
        Ok(Flow::Continue)
    }

    fn idle(&mut self, run: &mut Run) -> Result<Flow, Self::Error> {
        match self.apply_next(run)? {
            Next::Applied => Ok(Flow::Continue),
            Next::Ended => Ok(Flow::Leave),
            // The recorded machine went on from here; this one has nothing to wake it.
            Next::Reached => Err(Self::diverged(
                run,
                Difference::End { expected: self.player.horizon(), found: run.point() },
            )),
        }
    }

    fn entering(&mut self, run: &mut Run) -> Result<Flow, Self::Error> {
        loop {
            if self.begun {
                let batch = archived(self.batches.current());
                match self.player.peek(batch)? {
                    // What was captured since the exit before happened on the other side only: its effects are
                    // in the image.
                    Some((point, Event::ForcedStop { image, captured }))
                        if point == run.point() + 1 + u64::from(captured) =>
                    {
                        self.player.take(point, &Event::ForcedStop { image, captured });
                        if is_last(image).ok_or(StopError::Damaged("no mark"))? {
                            self.captured.skip(captured.into()).map_err(|at| LogError::Captured { at })?;
                            run.skip_captured(captured.into());
                            let parts = self.parts.iter().map(Vec::as_slice).chain([image]);
                            let (unpacker, shipped) = (&mut self.unpacker, &mut self.shipped);
                            load(parts, &mut run.machine, unpacker, shipped, &mut self.stops)?;
                            self.parts.clear();
                            run.replace_entry();
                            return Ok(Flow::Continue);
                        }
                        let pages = run.machine.ram().size() / PAGE_SIZE as u64;
                        if (self.parts.len() * PART_PAGES) as u64 >= pages {
                            return Err(StopError::Damaged("more parts than there is memory").into());
                        }
                        self.parts.push(image.to_vec());
                        continue;
                    }
                    Some((point, event)) if point > run.point() => {
                        let exit = match event {
                            Event::ForcedStop { captured, .. } => point - 1 - u64::from(captured),
                            Event::Input(_) => point,
                        };
                        if exit <= run.point() {
                            return Err(Self::diverged(
                                run,
                                Difference::Captured { found: "captured instructions behind a forced stop" },
                            ));
                        }
                        let stretch = exit - run.point() - 1;
                        self.captured.allow(&mut run.machine, stretch)?;
                        return Ok(Flow::Continue);
                    }
                    Some((point, _)) => {
                        return Err(Self::diverged(
                            run,
                            Difference::End { expected: point, found: run.point() },
                        ));
                    }
                    None if self.parts.is_empty() && self.player.horizon() > run.point() => {
                        let stretch = self.player.horizon() - run.point() - 1;
                        self.captured.allow(&mut run.machine, stretch)?;
                        return Ok(Flow::Continue);
                    }
                    None => {}
                }
            }
            if !self.fetch(run)? {
                return Ok(Flow::Leave);
            }
        }
    }

    fn interrupted(&mut self, run: &mut Run) -> Result<Flow, Self::Error> {
        debug_assert!(run.phase() == Phase::Ready, "only an entry can be interrupted");
        Ok(Flow::Continue)
    }

    fn captured(&mut self, _run: &mut Run, count: u64) -> Result<(), Self::Error> {
        Ok(self.captured.executed(count).map_err(|at| LogError::Captured { at })?)
    }

    fn paused(&mut self, run: &mut Run) -> Result<bool, Self::Error> {
        let found = match run.machine.captured_pause() {
            // The recorder's pauses have an entry. Others are this side's own: a full ring was shorter than the
            // stretch.
            Some(Pause::Limit | Pause::Empty) => {
                let next =
                    if self.begun { self.player.peek(archived(self.batches.current()))? } else { None };
                if let Some((point, Event::Input(_))) = next
                    && point == run.point() + 1
                {
                    return Ok(true);
                }
                if self.captured.can_go_on() {
                    return Ok(false);
                }
                "an instruction to be captured where the recording has none"
            }
            Some(Pause::Diverged) => "another instruction to be captured than the recorded one",
            _ => return Err(CaptureError::Damaged.into()),
        };
        Err(Self::diverged(run, Difference::Captured { found }))
    }
}
