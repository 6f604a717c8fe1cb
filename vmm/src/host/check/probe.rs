//! A probe: a question that is answered by trying, in a child process that may hang, crash or be killed.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::INTERNAL_PROBE;

/// A probe that has not answered by then hangs: emulated guests answer within a second, software
/// emulation of a whole host within a few.
const PATIENCE: Duration = Duration::from_secs(20);

/// What there is to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Guest code in ring 3: SSE, speed, MMIO exits, an interrupt through ring 0.
    Ring3,
    /// Guest code in ring 0: speed, port exits.
    Ring0,
    /// SSE arithmetic in ring 0.
    Sse,
    /// `cmpxchg16b` in ring 0.
    Cmpxchg16b,
    /// `syscall` from ring 3 and back.
    Syscall,
    /// `int 0x80` from ring 3 and back.
    Int,
    /// 32-bit protected mode without paging.
    Protected,
    /// CR3 and CR4 read as they were set.
    Control,
    /// Single-step in ring 3.
    Step,
    /// The dirty log names the pages written, and no others.
    Dirty,
    /// A page that can be read without an exit, and not written.
    ClockPage,
    /// Reads of a denied MSR come to user space.
    MsrFilter,
    /// Registers come with the exit.
    SyncRegs,
    /// KVM_RUN returns before the guest runs.
    ImmediateExit,
    /// A tap can be made.
    Tap,
    /// An io_uring carries a request.
    IoUring,
}

impl Probe {
    const ALL: [Self; 16] = [
        Self::Ring3,
        Self::Ring0,
        Self::Sse,
        Self::Cmpxchg16b,
        Self::Syscall,
        Self::Int,
        Self::Protected,
        Self::Control,
        Self::Step,
        Self::Dirty,
        Self::ClockPage,
        Self::MsrFilter,
        Self::SyncRegs,
        Self::ImmediateExit,
        Self::Tap,
        Self::IoUring,
    ];

    /// Its name on the child's command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ring3 => "ring3",
            Self::Ring0 => "ring0",
            Self::Sse => "sse",
            Self::Cmpxchg16b => "cmpxchg16b",
            Self::Syscall => "syscall",
            Self::Int => "int",
            Self::Protected => "protected",
            Self::Control => "control",
            Self::Step => "step",
            Self::Dirty => "dirty",
            Self::ClockPage => "clock-page",
            Self::MsrFilter => "msr-filter",
            Self::SyncRegs => "sync-regs",
            Self::ImmediateExit => "immediate-exit",
            Self::Tap => "tap",
            Self::IoUring => "io-uring",
        }
    }

    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|probe| probe.name() == name)
    }
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Whether it works.
    pub(super) ok: bool,
    /// How well, or why not.
    pub(super) detail: String,
    /// Nanoseconds that one simple instruction of the guest takes, where that was measured.
    pub(super) instruction_ns: Option<f64>,
    /// Microseconds from the guest to user space and back, where that was measured.
    pub(super) exit_us: Option<f64>,
}

impl Answer {
    pub(super) fn yes(detail: impl Into<String>) -> Self {
        Self { ok: true, detail: detail.into(), instruction_ns: None, exit_us: None }
    }

    pub(super) fn no(detail: impl fmt::Display) -> Self {
        Self { ok: false, detail: detail.to_string(), instruction_ns: None, exit_us: None }
    }
}

/// Tries a probe in a child process, by running `tandem` (the executable) again.
pub(super) fn ask(tandem: &Path, probe: Probe) -> Answer {
    match ask_child(tandem, probe) {
        Ok(answer) => answer,
        Err(error) => Answer::no(format_args!("the probe could not be run: {error}")),
    }
}

fn ask_child(tandem: &Path, probe: Probe) -> io::Result<Answer> {
    let mut child = Command::new(tandem)
        .args([INTERNAL_PROBE, probe.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let finished = wait(&mut child, PATIENCE)?;
    if !finished {
        child.kill()?;
        child.wait()?;
        return Ok(Answer::no(format_args!("hangs: no answer in {} s", PATIENCE.as_secs())));
    }
    let status = child.wait()?;
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text)?;
    }
    serde_json::from_str(&text).or_else(|_| Ok(Answer::no(format_args!("the probe died: {status}"))))
}

/// Waits for a child to end. Its answer is one short line, so the pipe never fills.
fn wait(child: &mut Child, patience: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    while begun.elapsed() < patience {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(child.try_wait()?.is_some())
}
