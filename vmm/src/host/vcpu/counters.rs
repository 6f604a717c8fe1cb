//! The numbers of a vCPU thread, for status.

use std::sync::Mutex;

use crate::host::control::{Digest, LogKind, Status};
use crate::host::lock;
use crate::machine::cpu::exit::Exit;
use crate::replay::batch::{Kind, Traffic};
use crate::replay::run::Run;

/// Time over which a log rate is taken, in nanoseconds.
const RATE_OVER: u64 = 1_000_000_000;

/// What a vCPU thread has come to.
#[derive(Clone, Debug)]
pub struct VcpuCounters {
    exits: Vec<(&'static str, u64)>,
    traffic: Traffic,
    forced_stops: u64,
    stop_pages: u64,
    stop_nanos: u64,
    clock_pages: u64,
    transmit_polls: u64,
    guest_time: u64,
    point: u64,
    digest: u64,
}

impl Default for VcpuCounters {
    /// Of a machine that has not run. Has room for all kinds of exits.
    fn default() -> Self {
        Self {
            exits: Vec::with_capacity(Exit::KINDS.len()),
            traffic: Traffic::default(),
            forced_stops: 0,
            stop_pages: 0,
            stop_nanos: 0,
            clock_pages: 0,
            transmit_polls: 0,
            guest_time: 0,
            point: 0,
            digest: 0,
        }
    }
}

impl VcpuCounters {
    /// Takes the numbers of `run` and its log, allocating nothing.
    pub fn update(&mut self, run: &Run, traffic: &Traffic) {
        self.exits.clear();
        self.exits.extend(run.exits_by_name());
        self.traffic = *traffic;
        self.forced_stops = run.forced_stops;
        self.stop_pages = run.stop_pages;
        self.stop_nanos = run.stop_nanos;
        self.clock_pages = run.machine.clock_pages();
        self.transmit_polls = run.machine.transmit_polls();
        self.guest_time = run.machine.now().as_nanos();
        self.point = run.point();
        self.digest = run.digest();
    }
}

/// Counters that the vCPU thread updates and another thread shows.
#[derive(Debug, Default)]
pub struct SharedCounters(Mutex<VcpuCounters>);

impl SharedCounters {
    /// See [`VcpuCounters::update`].
    pub fn update(&self, run: &Run, traffic: &Traffic) {
        lock(&self.0).update(run, traffic);
    }

    /// Puts the numbers into `status`; `now` in nanoseconds of a monotonic clock.
    pub fn show(&self, status: &mut Status, rates: &mut LogRates, now: u64) {
        let counters = lock(&self.0).clone();
        status.guest_time_ns = counters.guest_time;
        status.forced_stops = counters.forced_stops;
        status.forced_stop_pages = counters.stop_pages;
        status.forced_stop_ms = counters.stop_nanos as f64 / 1e6;
        status.clock_pages = counters.clock_pages;
        status.transmit_polls = counters.transmit_polls;
        status.exits = counters.exits.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        status.digest = Some(Digest::new(counters.point, counters.digest));
        status.log = rates.told(&counters.traffic, now);
    }
}

/// Log rates by kind of entry, taken over about a second.
#[derive(Debug)]
pub struct LogRates {
    since: u64,
    bytes: Vec<u64>,
    rates: Vec<f64>,
}

impl LogRates {
    /// No log before `now`, in nanoseconds of a monotonic clock.
    #[must_use]
    pub fn new(now: u64) -> Self {
        Self { since: now, bytes: vec![0; Kind::ALL.len()], rates: vec![0.0; Kind::ALL.len()] }
    }

    fn told(&mut self, traffic: &Traffic, now: u64) -> Vec<LogKind> {
        let over = now.saturating_sub(self.since);
        if over >= RATE_OVER {
            for ((rate, before), bytes) in self.rates.iter_mut().zip(&mut self.bytes).zip(traffic.bytes) {
                *rate = bytes.saturating_sub(*before) as f64 / (over as f64 / 1e9);
                *before = bytes;
            }
            self.since = now;
        }
        let kinds = Kind::ALL.iter().zip(&self.rates);
        kinds
            .map(|(kind, rate)| LogKind {
                kind: kind.name().to_owned(),
                entries: traffic.count[kind.index()],
                bytes: traffic.bytes[kind.index()],
                bytes_per_s: *rate,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_taken_over_a_second_or_more() {
        let second = RATE_OVER;
        let mut rates = LogRates::new(5 * second);
        let mut traffic = Traffic::default();
        let packet = Kind::ALL.iter().position(|kind| kind.name() == "packet").unwrap();
        let rate =
            |rates: &mut LogRates, traffic: &Traffic, now| rates.told(traffic, now)[packet].bytes_per_s;
        traffic.bytes[packet] = 1000;
        assert!(rate(&mut rates, &traffic, 5 * second + second / 2).abs() < 1e-9, "too early");
        assert!((rate(&mut rates, &traffic, 7 * second) - 500.0).abs() < 1e-9);
        traffic.bytes[packet] = 4000;
        assert!((rate(&mut rates, &traffic, 7 * second + second / 2) - 500.0).abs() < 1e-9, "as before");
        assert!((rate(&mut rates, &traffic, 8 * second) - 3000.0).abs() < 1e-9);
        assert_eq!(rates.told(&traffic, 8 * second)[packet].bytes, 4000);
    }
}
