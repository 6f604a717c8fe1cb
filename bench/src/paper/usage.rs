//! What a row cost, from the status of both sides before and after it.

use tandem_vmm::host::control::Status;

use crate::report::Usage;
use crate::report::spent::Spent;

/// A look at a side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// What it says.
    pub(crate) status: Status,
    /// CPU seconds its process took so far.
    pub(crate) cpu: f64,
    /// Where its machine's time went so far.
    pub(crate) spent: Option<Spent>,
}

impl Usage {
    /// From looks at the primary, and at its backup if it has one, before and `seconds` later.
    pub(crate) fn between(before: &[Look], after: &[Look], seconds: f64) -> Self {
        let mut usage = Self { seconds, ..Self::default() };
        if let (Some(first), Some(last)) = (before.first(), after.first()) {
            usage.primary(&first.status, &last.status, seconds);
            usage.spent = spent(first, last, seconds);
            usage.primary_cpu = Some((last.cpu - first.cpu) / seconds);
        }
        if let (Some(first), Some(last)) = (before.get(1), after.get(1)) {
            usage.backup_spent = spent(first, last, seconds);
            usage.backup_cpu = Some((last.cpu - first.cpu) / seconds);
        }
        usage
    }

    fn primary(&mut self, before: &Status, after: &Status, seconds: f64) {
        for kind in &after.log {
            let bytes = before.log.iter().find(|old| old.kind == kind.kind).map_or(0, |old| old.bytes);
            let bytes = kind.bytes.saturating_sub(bytes);
            if bytes > 0 {
                self.log_by_kind.insert(kind.kind.clone(), bytes as f64 * 8e-6 / seconds);
                self.log_bytes += bytes;
            }
        }
        self.log_mbit_s = self.log_bytes as f64 * 8e-6 / seconds;
        let exits = |status: &Status| status.exits.values().sum::<u64>();
        self.exits_per_s = exits(after).saturating_sub(exits(before)) as f64 / seconds;
        for (reason, count) in &after.exits {
            let more = count - before.exits.get(reason).unwrap_or(&0).min(count);
            if more > 0 {
                self.exits_by_reason.insert(reason.clone(), more as f64 / seconds);
            }
        }
        let stops = after.forced_stops.saturating_sub(before.forced_stops) as f64;
        self.forced_stops_per_s = stops / seconds;
        let pages = after.forced_stop_pages.saturating_sub(before.forced_stop_pages) as f64;
        self.pages_per_stop = pages / stops.max(1.0);
        self.ms_per_stop = (after.forced_stop_ms - before.forced_stop_ms) / stops.max(1.0);
        self.frames_per_s = after.frames.saturating_sub(before.frames) as f64 / seconds;
        self.held_back = (after.held_back_ms - before.held_back_ms) / 1e3 / seconds;
        self.lag_ms = after.lag.map(|lag| lag.ms);
        self.output_delay_us_p50 = after.output_delay.as_ref().map(|delay| delay.p50_us);
        self.output_delay_us_p99 = after.output_delay.as_ref().map(|delay| delay.p99_us);
    }
}

fn spent(first: &Look, last: &Look, seconds: f64) -> Option<Spent> {
    last.spent.zip(first.spent).map(|(last, first)| last.since(&first, seconds))
}

/// CPU seconds of a process, user and system, from `/proc/PID/stat`.
pub(crate) fn cpu_seconds(stat: &str, ticks_per_second: f64) -> Option<f64> {
    // The name, in parentheses, may have blanks and parentheses of its own.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / ticks_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_vmm::host::control::{Lag, LogKind, OutputDelay};

    fn look(bytes: u64, stops: u64, exits: u64, cpu: f64) -> Look {
        let kind = |kind: &str, bytes| LogKind { kind: kind.to_owned(), bytes, ..LogKind::default() };
        let status = Status {
            log: vec![kind("packet", bytes), kind("time", 7)],
            forced_stops: stops,
            forced_stop_pages: stops * 30,
            forced_stop_ms: stops as f64 * 0.5,
            frames: exits / 2,
            exits: [("halt".to_owned(), exits)].into(),
            lag: Some(Lag { ms: 2.5, entries: 3 }),
            output_delay: Some(OutputDelay { p50_us: 80.0, p99_us: 200.0, ..OutputDelay::default() }),
            ..Status::default()
        };
        Look { status, cpu, spent: Some(Spent { guest: cpu, ..Spent::default() }) }
    }

    #[test]
    fn rates_are_of_what_came_between_two_looks() {
        let before = [look(1_000_000, 5, 100, 1.0), look(0, 0, 0, 2.0)];
        let after = [look(3_500_000, 25, 500, 2.5), look(0, 0, 0, 2.2)];
        let usage = Usage::between(&before, &after, 2.0);
        assert_eq!((usage.log_mbit_s, usage.log_bytes), (10.0, 2_500_000));
        assert_eq!(usage.log_by_kind, [("packet".to_owned(), 10.0)].into());
        assert_eq!((usage.forced_stops_per_s, usage.exits_per_s), (10.0, 200.0));
        assert_eq!((usage.pages_per_stop, usage.ms_per_stop, usage.frames_per_s), (30.0, 0.5, 100.0));
        assert_eq!(usage.exits_by_reason, [("halt".to_owned(), 200.0)].into());
        assert_eq!(usage.spent.unwrap().guest, 0.75);
        assert_eq!((usage.primary_cpu, usage.lag_ms), (Some(0.75), Some(2.5)));
        assert!((usage.backup_cpu.unwrap() - 0.1).abs() < 1e-9);
        assert_eq!((usage.output_delay_us_p50, usage.output_delay_us_p99), (Some(80.0), Some(200.0)));
    }

    #[test]
    fn the_time_of_a_process_is_read_past_its_name() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 0 0";
        assert_eq!(cpu_seconds(stat, 100.0), Some(3.0));
        assert_eq!(cpu_seconds("12 (a) S 1", 100.0), None);
        assert_eq!(cpu_seconds("", 100.0), None);
    }
}
