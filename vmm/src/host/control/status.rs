//! What a running side says of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host::config::{Config, Tsc};

/// The state of one side, as `tandem status --json` prints it. Fields that do not apply to a role are
/// absent; a client takes an unknown field from a newer side, and a missing one from an older, without
/// complaint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The VM's name from its config.
    pub name: String,
    /// What this side is now.
    pub role: Role,
    /// Why it is that, where that is worth a sentence: "peer silent for 50 ms", "lost generation 3".
    pub note: Option<String>,
    /// Rises by one at every change of sides; zero for a VM alone.
    pub generation: u64,
    /// The other side's address, and whether it is heard.
    pub peer: Option<Peer>,
    /// The version of `tandem` that runs.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Milliseconds since the process began to run this VM.
    pub uptime_ms: u64,
    /// The guest's virtual time, in nanoseconds since power-on.
    pub guest_time_ns: u64,
    /// How the TSC is kept from telling the sides apart: "hidden".
    pub tsc: String,
    /// How far the backup's execution is behind; absent where there is none.
    pub lag: Option<Lag>,
    /// The log by kind of entry, since the start.
    pub log: Vec<LogKind>,
    /// How long outputs waited at the gate for their acknowledgement; absent without a gate.
    pub output_delay: Option<OutputDelay>,
    /// Outputs waiting at the gate now.
    pub held_outputs: u64,
    /// Forced stops since the start.
    pub forced_stops: u64,
    /// Pages that they shipped; zero where they are only loaded.
    pub forced_stop_pages: u64,
    /// CPU time that they took until the guest went on, in milliseconds; zero where they are only loaded.
    pub forced_stop_ms: f64,
    /// How many times the guest was given a page to read its clock from, since the start.
    pub clock_pages: u64,
    /// How many times a network driver was asked not to notify of what it sends, which then leaves at any exit, since the start.
    pub transmit_polls: u64,
    /// Frames of the log sent in this generation; zero where none are.
    pub frames: u64,
    /// Time for which the guest was held back since its backup lagged, in milliseconds.
    pub held_back_ms: f64,
    /// vCPU exits by reason, since the start.
    pub exits: BTreeMap<String, u64>,
    /// The last digest of deterministic exits.
    pub digest: Option<Digest>,
}

impl Status {
    /// Of this process, before anything happened.
    pub(crate) fn of(config: &Config, role: Role) -> Self {
        Self {
            name: config.name.clone(),
            role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            tsc: match config.machine.tsc {
                Tsc::Hidden => "hidden",
                Tsc::Trapped => "trapped",
            }
            .to_owned(),
            ..Self::default()
        }
    }
}

/// What a side is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs alone by choice: `tandem run`, `record`.
    #[default]
    Solo,
    /// Fetches state to become a backup, or waits for a peer.
    Joining,
    /// Runs the VM and logs it.
    Primary,
    /// Replays the log.
    Backup,
    /// Has lost its peer and asks the arbiter.
    Arbitrating,
    /// Won: runs the VM, unprotected.
    Live,
    /// Stopped for good: lost, diverged, or switched off.
    Halted,
}

impl Role {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Solo => "solo",
            Self::Joining => "joining",
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Arbitrating => "arbitrating",
            Self::Live => "live",
            Self::Halted => "halted",
        }
    }
}

/// The other side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// Where it is, with port.
    pub address: String,
    /// Whether it was heard within the patience of the config.
    pub alive: bool,
    /// Milliseconds since it was last heard; absent if never.
    pub last_heard_ms: Option<u64>,
}

/// The distance between the last log frame received and the last one executed by the backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lag {
    /// In milliseconds of virtual time.
    pub ms: f64,
    /// In frames of the log.
    pub entries: u64,
}

/// One kind of log entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogKind {
    /// The kind: "time", "packet", "disk", "forced_stop", "output" ….
    pub kind: String,
    /// Entries since the start.
    pub entries: u64,
    /// Their bytes, frame headers included.
    pub bytes: u64,
    /// Bytes per second lately: over the last second or the time since the last status.
    pub bytes_per_s: f64,
}

/// The distribution of waits at the output gate, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputDelay {
    /// Outputs counted.
    pub count: u64,
    /// Half of them waited at most this long.
    pub p50_us: f64,
    /// 99 of 100 waited at most this long.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Half of them took at most this long from the guest's kick until they had left.
    pub total_p50_us: f64,
    /// 99 of 100 took at most this long for that.
    pub total_p99_us: f64,
    /// Half of them were released at most this long after the guest's kick: all of that way but "queue" and "write", which
    /// an unprotected machine has too.
    pub release_p50_us: f64,
    /// 99 of 100 were released at most this long after it.
    pub release_p99_us: f64,
    /// That way, stage by stage.
    pub stages: Vec<OutputStage>,
}

/// A stage of an output's way: "capture" (the exit is emulated, until the batch of log is closed), "encode", "flush"
/// (the network takes the batch), "wire" (what is left of the round trip: the backup's wake-up and ack and this side's
/// wake-up are in it, since two clocks cannot tell them apart), "release" (its thread comes to look; the protocol),
/// "queue" (the outputs before it are written), "write" (into the tap or the file). In microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputStage {
    /// Its name.
    pub name: String,
    /// Half of all outputs took at most this long.
    pub p50_us: f64,
    /// 99 of 100 took at most this long.
    pub p99_us: f64,
}

/// A digest of deterministic exits up to a position: equal on both sides, or they have diverged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Digest {
    /// The ordinal of the last exit folded in.
    pub position: u64,
    /// The digest, 16 hex digits (a JSON number would lose the low bits).
    pub value: String,
}

impl Digest {
    /// A digest of 64 bits at exit `position`.
    #[must_use]
    pub fn new(position: u64, value: u64) -> Self {
        Self { position, value: format!("{value:016x}") }
    }
}
