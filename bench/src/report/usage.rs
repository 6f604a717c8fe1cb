//! What a row cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spent::Spent;

/// The rates of one turn of a row on a protected pair; of an unprotected VM only the exits are there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    /// How long it was, in seconds.
    pub(crate) seconds: f64,
    /// Of the whole log, in Mbit/s.
    pub(crate) log_mbit_s: f64,
    /// Of each kind of entry that came, in Mbit/s.
    pub(crate) log_by_kind: BTreeMap<String, f64>,
    /// The whole log in bytes.
    pub(crate) log_bytes: u64,
    /// Forced stops a second.
    pub(crate) forced_stops_per_s: f64,
    /// Pages that each of them shipped, on average.
    pub(crate) pages_per_stop: f64,
    /// What each of them took of the vCPU thread until the guest went on, in ms, on average.
    pub(crate) ms_per_stop: f64,
    /// Frames of the log a second.
    pub(crate) frames_per_s: f64,
    /// Share of the time for which the guest was held back since its backup lagged.
    pub(crate) held_back: f64,
    /// Exits of the vCPU a second.
    pub(crate) exits_per_s: f64,
    /// The same by reason.
    pub(crate) exits_by_reason: BTreeMap<String, f64>,
    /// How far the backup was behind at the end, in ms of the guest's time.
    pub(crate) lag_ms: Option<f64>,
    /// Half of all outputs since the VM's start waited at most so long at the gate, in µs.
    pub(crate) output_delay_us_p50: Option<f64>,
    /// 99 of 100.
    pub(crate) output_delay_us_p99: Option<f64>,
    /// Where the time of the primary's machine went, in CPUs.
    pub(crate) spent: Option<Spent>,
    /// And that of the backup's.
    pub(crate) backup_spent: Option<Spent>,
    /// CPU seconds a second that the primary's VMM took.
    pub(crate) primary_cpu: Option<f64>,
    /// CPU seconds a second that the backup's VMM took.
    pub(crate) backup_cpu: Option<f64>,
}
