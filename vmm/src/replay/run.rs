//! The loop that drives a machine from exit to exit.
//!
//! One loop for all: a `Driver` decides what is applied at each point. A recorder takes inputs from
//! outside and logs them, a follower takes them from the log. The loop's whole state is in `Run`, so
//! that a follower can stop anywhere and a recorder go on from there: that is a failover.

use kvm_bindings::kvm_regs;

use crate::machine::cpu::exit::Exit;
use crate::machine::cpu::vcpu::Entered;
use crate::machine::output::{Outputs, PowerEvent};
use crate::machine::vm::{Emulated, Machine, MachineError};

use super::position::Position;
use super::trace::{ExitRecord, RIP};

/// Where the machine stands between two steps of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// At a deterministic exit that is not emulated yet.
    Exited(Exit),
    /// Waiting for an interrupt; the end of the wait is the current point.
    Idle,
    /// At a forced stop.
    Stopped,
    /// The exit is emulated; interrupts are to be injected.
    Settling,
    /// Ready to enter the guest.
    Ready,
    /// The guest has switched itself off.
    Off(PowerEvent),
}

/// What the loop does after a driver's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Leave the loop; the run can be taken up again, by this driver or by another.
    Leave,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The driver left it.
    Left,
    /// The guest switched itself off.
    Off(PowerEvent),
}

/// Decides what is applied at each point.
pub trait Driver {
    /// What can go wrong.
    type Error: From<MachineError>;

    /// Where outputs go.
    fn outputs(&mut self) -> &mut dyn Outputs;
    /// Whether anybody will compare the digest: if not, exits are not folded into it.
    fn wants_digest(&self) -> bool {
        true
    }
    /// A deterministic exit was reached, and folded into the digest if that is wanted.
    ///
    /// # Errors
    /// For a verifying driver: when it is not the recorded one.
    fn exited(&mut self, run: &Run, record: &ExitRecord) -> Result<(), Self::Error>;
    /// The run stands at a point: apply all inputs that belong here.
    ///
    /// # Errors
    /// As the driver sees fit.
    fn point(&mut self, run: &mut Run) -> Result<Flow, Self::Error>;
    /// The machine idles and nothing wakes it: wait for an input that belongs here, and apply it.
    ///
    /// # Errors
    /// As the driver sees fit.
    fn idle(&mut self, run: &mut Run) -> Result<Flow, Self::Error>;
    /// The exit is emulated, its outputs are out, interrupts are injected: about to enter the guest. The
    /// driver may put a forced stop in place of the entry ([`Run::replace_entry`]).
    ///
    /// # Errors
    /// As the driver sees fit.
    fn entering(&mut self, run: &mut Run) -> Result<Flow, Self::Error>;
    /// The host interrupted the guest between two exits. The driver may make a forced stop of it.
    ///
    /// # Errors
    /// As the driver sees fit.
    fn interrupted(&mut self, run: &mut Run) -> Result<Flow, Self::Error>;
    /// The kernel module has served so many instructions since the last call; they are counted as points.
    ///
    /// # Errors
    /// As the driver sees fit.
    fn captured(&mut self, run: &mut Run, count: u64) -> Result<(), Self::Error>;
    /// The kernel module has paused the guest in front of an instruction that it captures. True: this is a
    /// point; false: the guest can go on.
    ///
    /// # Errors
    /// As the driver sees fit.
    fn paused(&mut self, run: &mut Run) -> Result<bool, Self::Error>;
}

/// A machine and how far it has come.
#[derive(Debug)]
pub struct Run {
    /// The machine.
    pub machine: Machine,
    phase: Phase,
    point: u64,
    digest: u64,
    last: ExitRecord,
    /// Deterministic exits by [`Exit::kind`].
    pub exits: [u64; Exit::KINDS.len()],
    /// Forced stops so far.
    pub forced_stops: u64,
    /// Pages that they shipped, where they were made.
    pub stop_pages: u64,
    /// What they took of this thread's CPU time until the guest went on, in nanoseconds, where they were made.
    pub stop_nanos: u64,
    /// Captured instructions so far.
    pub captured: u64,
    /// Captured instructions since the last exit or forced stop.
    since: u64,
}

impl Run {
    /// A machine that has not run yet.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            phase: Phase::Settling,
            point: 0,
            digest: 0,
            last: ExitRecord::default(),
            exits: [0; Exit::KINDS.len()],
            forced_stops: 0,
            stop_pages: 0,
            stop_nanos: 0,
            captured: 0,
            since: 0,
        }
    }

    /// Points so far; the current one is counted.
    #[must_use]
    pub const fn point(&self) -> u64 {
        self.point
    }

    /// Digest of all exits so far, as far as the driver wanted it.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// Where the run stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The current position.
    #[must_use]
    pub const fn position(&self) -> Position {
        match self.phase {
            Phase::Stopped => Position::forced_stop(self.point),
            _ => Position::exit(self.point),
        }
    }

    /// The last deterministic exit.
    #[must_use]
    pub const fn last_exit(&self) -> &ExitRecord {
        &self.last
    }

    /// Kind of the last exit, for reports.
    #[must_use]
    pub fn last_exit_name(&self) -> &'static str {
        Exit::KINDS.get((self.last.0[0] & 0xff) as usize).copied().unwrap_or("unknown")
    }

    /// Deterministic exits by name.
    pub fn exits_by_name(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Exit::KINDS.into_iter().zip(self.exits).chain([("captured", self.captured)])
    }

    /// Guest instruction pointer at the last exit.
    #[must_use]
    pub const fn rip(&self) -> u64 {
        self.last.0[RIP]
    }

    /// Makes a forced stop of the place where the guest stands: a new point. The caller has captured
    /// or loaded the machine's state there.
    pub fn replace_entry(&mut self) {
        self.point += 1;
        self.since = 0;
        self.forced_stops += 1;
        self.machine.forced_stop();
        self.phase = Phase::Stopped;
    }

    /// Captured instructions since the last exit or forced stop. If there are any, the guest stands behind one
    /// of them, and the log cannot end here: only the module can stop a follower there, and only in front of the
    /// next.
    #[must_use]
    pub const fn captured_since(&self) -> u64 {
        self.since
    }

    /// Counts instructions that were captured elsewhere: those before a forced stop whose image holds what came
    /// of them.
    pub fn skip_captured(&mut self, count: u64) {
        self.point += count;
        self.captured += count;
        self.since += count;
    }

    fn reached(&mut self, exit: Exit, wants_digest: bool) -> Result<(), MachineError> {
        let mut regs = self.machine.regs()?;
        if self.machine.exposes_tsc(&exit) {
            // A forced stop follows, which makes them equal.
            regs = kvm_regs { rip: regs.rip, rsp: regs.rsp, ..kvm_regs::default() };
        }
        let captured = (self.since, self.machine.captured_digest());
        self.last = ExitRecord::new(&exit, self.machine.port_output(&exit), &regs, captured);
        self.since = 0;
        if wants_digest {
            self.digest = self.last.fold(self.digest);
        }
        self.exits[exit.kind()] += 1;
        self.point += 1;
        self.phase = Phase::Exited(exit);
        Ok(())
    }
}

/// Runs until the driver leaves or the guest switches itself off.
///
/// # Errors
/// What the driver or the machine came upon; the run stays where it was.
pub fn drive<D: Driver>(run: &mut Run, driver: &mut D) -> Result<Ended, D::Error> {
    loop {
        let flow = match run.phase {
            Phase::Exited(exit) => {
                let flow = driver.point(run)?;
                if flow == Flow::Continue {
                    match run.machine.emulate(&exit, driver.outputs())? {
                        Emulated::Done => run.phase = Phase::Settling,
                        Emulated::Off(event) => run.phase = Phase::Off(event),
                        Emulated::Idle => {
                            run.point += 1;
                            run.phase = Phase::Idle;
                        }
                    }
                }
                flow
            }
            Phase::Idle if !run.machine.can_wake() => driver.idle(run)?,
            Phase::Idle => {
                let flow = driver.point(run)?;
                if flow == Flow::Continue {
                    run.machine.wake();
                    run.phase = Phase::Settling;
                }
                flow
            }
            Phase::Stopped => {
                let flow = driver.point(run)?;
                if flow == Flow::Continue {
                    run.machine.emulate_stop(driver.outputs());
                    run.phase = Phase::Settling;
                }
                flow
            }
            Phase::Settling => {
                run.machine.inject_interrupts()?;
                run.phase = Phase::Ready;
                Flow::Continue
            }
            Phase::Ready => step(run, driver)?,
            Phase::Off(event) => return Ok(Ended::Off(event)),
        };
        if flow == Flow::Leave {
            return Ok(Ended::Left);
        }
    }
}

fn step<D: Driver>(run: &mut Run, driver: &mut D) -> Result<Flow, D::Error> {
    let flow = driver.entering(run)?;
    if flow == Flow::Leave || run.phase != Phase::Ready {
        return Ok(flow);
    }
    let entered = run.machine.enter()?;
    let captured = run.machine.count_captured();
    if captured != 0 {
        run.skip_captured(captured);
        driver.captured(run, captured)?;
    }
    match entered {
        Entered::Exit(exit) => reached(run, driver, exit),
        Entered::Interrupted => driver.interrupted(run),
        Entered::Paused if driver.paused(run)? => reached(run, driver, Exit::Captured),
        Entered::Paused => Ok(Flow::Continue),
    }
}

fn reached<D: Driver>(run: &mut Run, driver: &mut D, exit: Exit) -> Result<Flow, D::Error> {
    run.reached(exit, driver.wants_digest())?;
    driver.exited(run, &run.last)?;
    Ok(Flow::Continue)
}
