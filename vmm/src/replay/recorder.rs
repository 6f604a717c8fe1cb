//! Records: applies inputs from outside, and logs each with its point.
//!
//! The same driver runs an unprotected machine: its log then takes nothing.

use tandem_kmod_brain::abi::Pause;

use crate::machine::cpu::capture::CaptureError;
use crate::machine::cpu::exit::Exit;
use crate::machine::input::Input;
use crate::machine::memory::PAGE_SIZE;
use crate::machine::output::Outputs;
use crate::machine::time::VirtualTime;
use crate::machine::vm::MachineError;

use super::batch::Traffic;
use super::builder::BatchBuilder;
use super::hot_pages::HotPages;
use super::output_commit::{self, Ahead, Debt};
pub use super::outside::{Inputs, Log};
pub use super::pace::Pace;
use super::run::{Driver, Flow, Phase, Run};
use super::stop::{self, Packer, Packing, ResetPolicy, StopCounts, StopError, Stopped};
use super::stop_pace::{Limits, StopPace};
use super::trace::ExitRecord;

/// How often the numbers of a run are shown, in nanoseconds.
const OBSERVE: u64 = 50_000_000;

/// A guest without any exit is stopped after so many bounds even if nothing waits for it: the backup
/// cannot follow further than the last point.
const IDLE_BOUNDS: u64 = 20;

/// What the guest must compute between two stops, for what the last one took, is so many bounds at most: more than
/// [`IDLE_BOUNDS`], or that would decide where stops are dear, and take more of the time than [`StopPace::COMPUTES`] allows.
const STOP_BOUNDS: u64 = 32;

/// Points in a row at which inputs are passed over, since the guest kicks something off there: some guests do nothing else.
const PASSED_OVER: u8 = 4;

/// A forced stop may become so many pages large, 8 MiB, before pages are protected again to keep it small: a guest that is
/// never stopped would have a fault for each of them, for nothing.
const STOP_PAGES: usize = 2048;

/// Records a machine's run.
#[derive(Debug)]
pub struct Recorder<I, L> {
    /// Where inputs come from.
    pub inputs: I,
    /// Where the log goes.
    pub log: L,
    builder: BatchBuilder,
    pace: Pace,
    resets: ResetPolicy,
    hot: HotPages,
    packer: Packer,
    stop_pace: StopPace,
    /// The point at which the guest was last interrupted, and the CPU time then.
    computing: (u64, u64),
    /// Host time of the last point, in nanoseconds.
    last_point: u64,
    /// Host time of the first point since the last commit, in nanoseconds: what is not sent yet is at
    /// most so old.
    unsent_since: Option<u64>,
    /// Host time of the last observation, in nanoseconds.
    last_observed: u64,
    /// Whether the guest was kicked twice without an exit since the last commit.
    long: bool,
    /// Whether outputs made at the current point rely on the last commit, or would if the inputs had been
    /// sent ahead.
    gains: bool,
    ahead: Ahead,
    /// Points in a row at which inputs were passed over.
    passed_over: u8,
    debt: Option<Debt>,
    /// Forced stops made.
    pub stops: StopCounts,
}

impl<I: Inputs, L: Log> Recorder<I, L>
where
    L::Error: From<StopError> + From<MachineError>,
{
    /// A recorder that takes `run` up where it stands.
    #[must_use]
    pub fn new(run: &Run, mut inputs: I, log: L, pace: Pace) -> Self {
        let now = inputs.now().as_nanos();
        Self {
            inputs,
            log,
            builder: BatchBuilder::new(run.point(), run.machine.now(), run.machine.tsc()),
            pace,
            resets: ResetPolicy::new(now),
            hot: HotPages::default(),
            packer: Packer::default(),
            stop_pace: StopPace::default(),
            computing: (u64::MAX, 0),
            last_point: now,
            unsent_since: None,
            last_observed: 0,
            long: false,
            gains: false,
            ahead: Ahead::default(),
            passed_over: 0,
            debt: None,
            stops: StopCounts::default(),
        }
    }

    /// As [`Recorder::new`], for a machine whose former host is gone: first come the outputs that the other
    /// may have let out already, before anything new is taken in.
    #[must_use]
    pub fn taking_over(run: &Run, inputs: I, log: L, pace: Pace) -> Self {
        Self { debt: Some(Debt::from(run.point())), ..Self::new(run, inputs, log, pace) }
    }

    /// The log's traffic so far.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        self.builder.traffic()
    }

    fn apply(&mut self, run: &mut Run, time: VirtualTime) -> Result<(), L::Error> {
        self.log.wait_for_next(true);
        self.log_input(run.point(), &Input::Time(time));
        Ok(run.machine.apply(&Input::Time(time), &mut self.log)?)
    }

    fn log_input(&mut self, point: u64, input: &Input<'_>) {
        if self.log.enabled() {
            self.builder.input(point, input);
        }
    }

    /// Applies everything that waits.
    fn drain(&mut self, run: &mut Run) -> Result<(), L::Error> {
        self.passed_over = 0;
        self.log.wait_for_next(true);
        while let Some(input) = self.inputs.front() {
            if run.machine.accepts(&input) {
                if self.log.enabled() {
                    self.builder.input(run.point(), &input);
                }
                run.machine.apply(&input, &mut self.log)?;
            }
            self.inputs.take();
            if self.builder.must_seal(run.point()) {
                // The point is not finished: more inputs may follow, so the horizon stays before it.
                self.commit_at(run, run.point() - 1)?;
            }
        }
        Ok(())
    }

    /// Seals the log at the current point, if there is anything to say.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn commit(&mut self, run: &Run) -> Result<(), L::Error> {
        if self.has_news(run.point()) {
            self.commit_at(run, run.point())?;
        }
        Ok(())
    }

    /// Whether a batch up to `point` would say anything.
    fn has_news(&self, point: u64) -> bool {
        self.log.enabled() && (self.log.waiting() || !self.builder.is_empty_at(point))
    }

    fn has_entries(&self) -> bool {
        self.log.enabled() && (self.log.waiting() || self.builder.has_entries())
    }

    /// Decides what outputs made now, at the current point, wait for.
    fn bind_outputs(&mut self, run: &Run) {
        let (point, base) = (run.point(), self.builder.base());
        self.gains = output_commit::is_near(point, base, self.long) && self.builder.lies_before(point);
        self.log.wait_for_next(!self.log.enabled() || !self.relies(run));
        self.log.kicked();
    }

    /// Whether outputs made now, at the current point, rely on the last batch.
    fn relies(&self, run: &Run) -> bool {
        output_commit::may_rely(run.point(), self.builder.base(), self.builder.decides(), self.long)
    }

    /// Looks at what the guest has put out since the last point.
    fn note_outputs(&mut self) {
        if self.log.made_outputs() {
            self.ahead.learn(self.gains);
        }
    }

    /// Seals the log where a run that was left stands.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn commit_end(&mut self, run: &Run) -> Result<(), L::Error> {
        if self.log.enabled() {
            // An idle wait that has not ended is not a complete point.
            let complete = if run.phase() == Phase::Idle { run.point() - 1 } else { run.point() };
            self.commit_at(run, complete)?;
        }
        Ok(())
    }

    fn commit_at(&mut self, run: &Run, horizon: u64) -> Result<(), L::Error> {
        let framing = self.log.commit(self.builder.seal(horizon, run.digest()))?;
        self.builder.add_framing(framing);
        self.builder.begin();
        self.unsent_since = None;
        self.long = false;
        Ok(())
    }

    /// Protects pages that were written. The guest's next write to each is a fault on this side only: where KVM shadows
    /// the guest's page tables, such a fault also sets accessed bits, so both sides drop the shadow here, which
    /// costs a fault for every page in use. Done only if a forced stop would be larger than is good.
    fn reset_dirty_log(&mut self, run: &mut Run) -> Result<(), L::Error> {
        let shadowed = run.machine.shadow_paging();
        if run.machine.dirty_pages()?.is_some_and(|pages| pages < STOP_PAGES) {
            return Ok(());
        }
        run.machine.reset_dirty_log(|written| self.hot.look(written))?;
        if shadowed {
            self.log.wait_for_next(true);
            self.log_input(run.point(), &Input::ShadowDropped);
            run.machine.apply(&Input::ShadowDropped, &mut self.log)?;
        }
        Ok(())
    }

    fn force_stop(&mut self, run: &mut Run, cpu: u64) -> Result<(), L::Error> {
        self.stop_pace.begins(cpu);
        if self.log.enabled() {
            let stopped = Stopped::capture(&mut run.machine, &mut self.hot)?;
            // As the backup will.
            stop::settle_in(&mut run.machine, stopped.vcpu())?;
            self.stops.stops += 1;
            self.stops.pages += stopped.pages() as u64;
            run.stop_pages += stopped.pages() as u64;
            self.stops.raw_bytes += (stopped.pages() * PAGE_SIZE) as u64;
            for part in 0..stopped.parts() {
                let packing = if self.log.scarce() { Packing::Lz4 } else { Packing::Plain };
                let packed = self.packer.part(&stopped, part, run.machine.ram(), packing)?;
                self.stops.packed_bytes += packed.len() as u64;
                self.builder.forced_stop(run.point() + 1, packed, run.captured_since());
                if part + 1 < stopped.parts() && self.builder.must_seal(run.point()) {
                    self.commit_at(run, run.point())?;
                }
            }
            let cost = self.inputs.cpu_time().saturating_sub(cpu);
            self.resets.stopped(self.inputs.now().as_nanos(), cost);
        }
        run.replace_entry();
        Ok(())
    }
}

impl<I: Inputs, L: Log> Driver for Recorder<I, L>
where
    L::Error: From<StopError> + From<MachineError>,
{
    type Error = L::Error;

    fn outputs(&mut self) -> &mut dyn Outputs {
        &mut self.log
    }

    fn wants_digest(&self) -> bool {
        self.log.enabled()
    }

    fn exited(&mut self, _run: &Run, record: &ExitRecord) -> Result<(), L::Error> {
        self.log.exit(record)
    }

    fn point(&mut self, run: &mut Run) -> Result<Flow, L::Error> {
        let now = self.inputs.now();
        self.last_point = now.as_nanos();
        if self.debt.is_some_and(|debt| debt.binds(run.point())) {
            return Ok(Flow::Continue);
        }
        let pending = self.inputs.pending();
        let due = run.machine.deadline().is_some_and(|deadline| deadline <= now);
        // What it puts out relies on the log as it is; an input before it would make it wait for one round trip more. There
        // is another point soon: the guest idles when it has put out what it had, or it goes on, and has its inputs there.
        let kicks_off = matches!(run.phase(), Phase::Exited(exit) if run.machine.kicks_off(&exit));
        if kicks_off && self.log.enabled() && self.passed_over < PASSED_OVER && self.relies(run) {
            self.passed_over += u8::from(pending || due);
            self.bind_outputs(run);
            return Ok(Flow::Continue);
        }
        self.passed_over = 0;
        if pending {
            self.drain(run)?;
        }
        let reads_clock = match run.phase() {
            Phase::Exited(exit) => run.machine.reads_clock(&exit),
            Phase::Idle => run.machine.wake_reads_clock(),
            _ => false,
        };
        // The reading is what a follower finds a pause by, however small.
        let paused = run.phase() == Phase::Exited(Exit::Captured);
        if due || paused || (reads_clock && now.since(run.machine.now()) > self.pace.quantum) {
            self.apply(run, now)?;
        }
        if self.log.enabled() && self.resets.due(now.as_nanos()) {
            self.reset_dirty_log(run)?;
        }
        self.bind_outputs(run);
        Ok(Flow::Continue)
    }

    fn idle(&mut self, run: &mut Run) -> Result<Flow, L::Error> {
        if self.inputs.leave() {
            return Ok(Flow::Leave);
        }
        self.note_outputs();
        self.debt = None;
        // Points up to the exit that led here are complete; the end of the wait is not.
        let complete = run.point() - 1;
        if self.log.enabled() && self.log.waiting() {
            self.commit_at(run, complete)?;
        }
        self.log.idle();
        let deadline = run.machine.deadline();
        if self.has_news(complete) && !self.inputs.pending() {
            // Nobody waits for it: it may have company soon. That points have passed is news of the least kind.
            let patience = if self.builder.has_entries() { self.pace.coalesce } else { self.pace.bound };
            let soon = self.inputs.now() + patience;
            self.inputs.wait(Some(deadline.map_or(soon, |deadline| deadline.min(soon))));
            if !self.inputs.pending() {
                self.commit_at(run, complete)?;
            }
        }
        if !self.inputs.pending() {
            self.inputs.wait(deadline);
        }
        self.drain(run)?;
        let now = self.inputs.now();
        self.last_point = now.as_nanos();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.apply(run, now)?;
        }
        Ok(Flow::Continue)
    }

    fn entering(&mut self, run: &mut Run) -> Result<Flow, L::Error> {
        if self.last_point.saturating_sub(self.last_observed) >= OBSERVE {
            self.last_observed = self.last_point;
            self.log.observe(run, self.builder.traffic());
        }
        self.note_outputs();
        if self.log.enabled() && run.machine.has_exposed_tsc() {
            let cpu = self.inputs.cpu_time();
            self.force_stop(run, cpu)?;
            return Ok(Flow::Continue);
        }
        let unsent_since = *self.unsent_since.get_or_insert(self.last_point);
        let urgent = self.log.urgent();
        if run.captured_since() != 0 {
            // No place where the log can end; its outputs were committed at the exit before.
            if self.inputs.leave() {
                let cpu = self.inputs.cpu_time();
                self.force_stop(run, cpu)?;
            }
            return Ok(Flow::Continue);
        }
        if !self.log.enabled() {
            if urgent {
                self.log.idle();
            }
        } else if urgent
            || self.last_point.saturating_sub(unsent_since) >= self.pace.coalesce
            || self.builder.must_seal(run.point())
            || (self.ahead.pays() && self.builder.has_outside_entries())
        {
            self.commit(run)?;
        }
        if self.stop_pace.is_open() {
            self.stop_pace.ends(self.inputs.spent());
            run.stop_nanos += self.stop_pace.cost();
        }
        Ok(if self.inputs.leave() { Flow::Leave } else { Flow::Continue })
    }

    fn interrupted(&mut self, run: &mut Run) -> Result<Flow, L::Error> {
        let (now, cpu) = (self.inputs.now(), self.inputs.cpu_time());
        if self.inputs.leave() {
            // The guest stands where no log can find it: make a point of it, and leave there.
            self.force_stop(run, cpu)?;
            return Ok(Flow::Continue);
        }
        // The host interrupts every half bound. The first time at a point only starts the clock, so
        // that two halves make the whole; a guest that was not run in between has not computed.
        let waits = self.inputs.pending()
            || run.machine.deadline().is_some_and(|deadline| deadline <= now)
            || run.machine.holds_packets();
        if waits {
            // Where the guest reads its TSC, it can be stopped for the price of a log entry.
            run.machine.limit_captured(Some(0));
        }
        let (point, since) = self.computing;
        if point != run.point() {
            self.computing = (run.point(), cpu);
            return Ok(Flow::Continue);
        }
        if self.debt.as_mut().is_some_and(|debt| !debt.kick()) {
            return Ok(Flow::Continue);
        }
        // It computes for long: the backup may as well come this far.
        if self.has_entries() && run.captured_since() == 0 {
            self.commit(run)?;
        }
        self.long = true;
        let computed = cpu.saturating_sub(since);
        let longest = self.pace.bound * IDLE_BOUNDS;
        let long = (waits && computed >= self.pace.bound / 4) || computed >= longest;
        let limits = Limits {
            // The guest may be waiting for a clock that stands still.
            longest: self.pace.bound * if run.machine.clock_stands_still() { 1 } else { STOP_BOUNDS },
            shadowed: self.log.enabled() && run.machine.shadow_paging(),
        };
        if long && self.stop_pace.may_stop(self.inputs.spent(), limits) {
            self.force_stop(run, cpu)?;
        }
        Ok(Flow::Continue)
    }

    fn captured(&mut self, run: &mut Run, _count: u64) -> Result<(), L::Error> {
        // No output that left early came behind a value that was not logged yet.
        self.debt = None;
        while let Some(entry) = run.machine.take_captured().map_err(MachineError::from)? {
            if self.log.enabled() {
                self.builder.captured(entry.trap, entry.value);
            }
        }
        Ok(())
    }

    fn paused(&mut self, run: &mut Run) -> Result<bool, L::Error> {
        // Somebody waits, or the ring was full: a point either way, and the guest may go on behind it.
        self.debt = None;
        run.machine.limit_captured(None);
        match run.machine.captured_pause() {
            Some(Pause::Corrupt | Pause::Layout) | None => {
                Err(MachineError::from(CaptureError::Damaged).into())
            }
            Some(_) => Ok(true),
        }
    }
}
