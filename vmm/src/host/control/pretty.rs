//! [`Status`] for human eyes.

use std::fmt;

use super::status::{Lag, LogKind, OutputDelay, OutputStage, Peer, Status};

/// Prints a status as a short table, one fact a line.
#[derive(Clone, Copy, Debug)]
pub struct Pretty<'a>(pub &'a Status);

impl fmt::Display for Pretty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        write!(f, "{}: {}", status.name, status.role.name())?;
        if let Some(note) = &status.note {
            write!(f, " ({note})")?;
        }
        writeln!(f)?;
        let mut line = |what: &str, value: fmt::Arguments<'_>| writeln!(f, "  {what:<14} {value}");
        line("generation", format_args!("{}", status.generation))?;
        if let Some(Peer { address, alive, last_heard_ms }) = &status.peer {
            let state = if *alive { "heard" } else { "SILENT" };
            match last_heard_ms {
                Some(ms) => line("peer", format_args!("{address}, {state} {ms} ms ago"))?,
                None => line("peer", format_args!("{address}, never heard"))?,
            }
        }
        line("uptime", format_args!("{}", Span(status.uptime_ms)))?;
        line("guest time", format_args!("{}", Span(status.guest_time_ns / 1_000_000)))?;
        line("tsc", format_args!("{}", status.tsc))?;
        if let Some(Lag { ms, entries }) = status.lag {
            line("lag", format_args!("{ms:.1} ms, {entries} entries"))?;
        }
        if let Some(OutputDelay {
            count, p50_us, p99_us, max_us, total_p50_us, total_p99_us, stages, ..
        }) = &status.output_delay
        {
            line(
                "output delay",
                format_args!(
                    "p50 {p50_us:.0} µs, p99 {p99_us:.0} µs, max {max_us:.0} µs, of {count} outputs"
                ),
            )?;
            line(
                "kick to exit",
                format_args!("p50 {total_p50_us:.0} µs, p99 {total_p99_us:.0} µs, of that:"),
            )?;
            for OutputStage { name, p50_us, p99_us } in stages {
                line("", format_args!("{name:<12} p50 {p50_us:>6.0} µs, p99 {p99_us:>6.0} µs"))?;
            }
            line("held outputs", format_args!("{}", status.held_outputs))?;
        }
        let (pages, ms) = (status.forced_stop_pages, status.forced_stop_ms);
        line("forced stops", format_args!("{}, with {pages} pages in {ms:.0} ms", status.forced_stops))?;
        if status.clock_pages > 0 {
            line("clock pages", format_args!("{}", status.clock_pages))?;
        }
        if status.transmit_polls > 0 {
            line("transmit polls", format_args!("{}", status.transmit_polls))?;
        }
        if let Some(digest) = &status.digest {
            line("digest", format_args!("{} at exit {}", digest.value, digest.position))?;
        }
        log(&mut line, &status.log)?;
        let mut exits: Vec<_> = status.exits.iter().collect();
        exits.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), *reason));
        for (index, (reason, count)) in exits.into_iter().enumerate() {
            line(if index == 0 { "exits" } else { "" }, format_args!("{reason:<14} {count:>12}"))?;
        }
        line("process", format_args!("{}, tandem {}", status.pid, status.version))
    }
}

fn log(line: &mut impl FnMut(&str, fmt::Arguments<'_>) -> fmt::Result, kinds: &[LogKind]) -> fmt::Result {
    let total: f64 = kinds.iter().map(|kind| kind.bytes_per_s).sum();
    if !kinds.is_empty() {
        line("log", format_args!("{:.2} Mbit/s now", total * 8.0 / 1e6))?;
    }
    for LogKind { kind, entries, bytes, bytes_per_s } in kinds {
        let rate = bytes_per_s * 8.0 / 1e6;
        line("", format_args!("{kind:<14} {entries:>12} entries {bytes:>14} bytes {rate:>9.2} Mbit/s"))?;
    }
    Ok(())
}

/// Milliseconds as days, hours, minutes and seconds.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0 / 1_000, self.0 % 1_000);
        let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
        if days > 0 {
            write!(f, "{days} d ")?;
        }
        if hours > 0 {
            write!(f, "{} h ", hours % 24)?;
        }
        if minutes > 0 {
            write!(f, "{} min ", minutes % 60)?;
        }
        write!(f, "{}.{millis:03} s", seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::{Digest, Role};
    use super::*;

    #[test]
    fn a_primary_in_full() {
        let status = Status {
            name: "demo".into(),
            role: Role::Primary,
            note: Some("protected".into()),
            generation: 3,
            peer: Some(Peer { address: "10.99.0.2:7700".into(), alive: true, last_heard_ms: Some(4) }),
            version: "0.1.0".into(),
            pid: 42,
            uptime_ms: 3_723_004,
            guest_time_ns: 59_999_000_000,
            tsc: "hidden".into(),
            lag: Some(Lag { ms: 1.25, entries: 17 }),
            log: vec![LogKind { kind: "packet".into(), entries: 10, bytes: 1_000, bytes_per_s: 125_000.0 }],
            output_delay: Some(OutputDelay {
                count: 9,
                p50_us: 31.0,
                p99_us: 90.4,
                max_us: 1_000.0,
                total_p50_us: 45.0,
                total_p99_us: 120.0,
                release_p50_us: 44.0,
                release_p99_us: 110.0,
                stages: vec![OutputStage { name: "wire".into(), p50_us: 30.0, p99_us: 85.0 }],
            }),
            held_outputs: 2,
            forced_stops: 5,
            forced_stop_pages: 20,
            forced_stop_ms: 4.2,
            clock_pages: 3,
            transmit_polls: 2,
            frames: 7,
            held_back_ms: 0.0,
            exits: [("mmio".to_owned(), 9), ("hlt".to_owned(), 11)].into(),
            digest: Some(Digest::new(20, 0xabc)),
        };
        let expected = "\
demo: primary (protected)
  generation     3
  peer           10.99.0.2:7700, heard 4 ms ago
  uptime         1 h 2 min 3.004 s
  guest time     59.999 s
  tsc            hidden
  lag            1.2 ms, 17 entries
  output delay   p50 31 µs, p99 90 µs, max 1000 µs, of 9 outputs
  kick to exit   p50 45 µs, p99 120 µs, of that:
                 wire         p50     30 µs, p99     85 µs
  held outputs   2
  forced stops   5, with 20 pages in 4 ms
  clock pages    3
  transmit polls 2
  digest         0000000000000abc at exit 20
  log            1.00 Mbit/s now
                 packet                   10 entries           1000 bytes      1.00 Mbit/s
  exits          hlt                      11
                 mmio                      9
  process        42, tandem 0.1.0
";
        assert_eq!(Pretty(&status).to_string(), expected);
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let text = Pretty(&Status { name: "x".into(), ..Status::default() }).to_string();
        assert!(text.starts_with("x: solo\n"), "{text}");
        for absent in ["peer", "lag", "output", "held", "digest", "log", "exits"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
    }
}
