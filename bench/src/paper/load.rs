//! The clients of the guest's services, and what they say.

use std::ffi::OsString;

use serde_json::Value;

use super::size::Size;
use crate::report::Row;

/// A client's command line; the first word is its program in the guest's image.
pub(crate) type Command = Vec<OsString>;

/// Clients of pgbench and connections of the shop.
const CLIENTS: u32 = 4;
/// Writes to Redis for each page.
const WRITES: u32 = 4;

/// The clients that make a row's load, all at once; none for a row that the guest does by itself.
pub(crate) fn commands(row: Row, size: &Size, guest: &str) -> Vec<Command> {
    let words = |text: String| text.split_whitespace().map(OsString::from).collect::<Command>();
    let Size { transactions, seconds, omit, pages, .. } = size;
    match row {
        Row::Jvm | Row::Compile => Vec::new(),
        Row::Database => vec![words(format!(
            "/usr/lib/postgresql/15/bin/pgbench --no-vacuum --host={guest} --username=postgres --client={CLIENTS} --transactions={transactions} bench"
        ))],
        Row::Shop => vec![
            // Pages of 10 KiB: ab asks for one page only.
            words(format!("/usr/bin/ab -k -q -n {pages} -c {CLIENTS} http://{guest}/10.html")),
            words(format!(
                "/usr/bin/redis-benchmark -h {guest} -t set -d 200 -r 1000 -n {} -c {CLIENTS} --csv",
                pages * WRITES
            )),
        ],
        Row::Receive => {
            vec![words(format!("/usr/bin/iperf3 --client {guest} --json --time {seconds} --omit {omit}"))]
        }
        Row::Transmit => {
            vec![words(format!(
                "/usr/bin/iperf3 --client {guest} --json --time {seconds} --omit {omit} --reverse"
            ))]
        }
    }
}

/// The row's rate, from what its clients wrote to standard output and how long they took together, in seconds.
///
/// # Errors
/// What the clients wrote has no rate, or says that something failed.
pub(crate) fn rate(row: Row, size: &Size, said: &[String], seconds: f64) -> Result<f64, String> {
    let first = said.first().map_or("", String::as_str);
    let lost =
        |what: &str| format!("{what} said no rate: {}", first.lines().next_back().unwrap_or("nothing"));
    match row {
        Row::Jvm | Row::Compile => Err("the guest does this by itself".to_owned()),
        Row::Database => {
            // tps = 123.4 (without initial connection time)
            let line = first.lines().find_map(|line| line.strip_prefix("tps = "));
            line.and_then(|rest| rest.split(' ').next()?.parse().ok()).ok_or_else(|| lost("pgbench"))
        }
        Row::Shop => {
            let count = |name: &str| {
                let line = first.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<u32>().ok()
            };
            if count("Failed requests:") != Some(0) || count("Complete requests:") != Some(size.pages) {
                return Err(lost("ab"));
            }
            let redis = said.get(1).map_or("", String::as_str);
            if !redis.lines().any(|line| line.starts_with("\"SET\"")) {
                return Err("redis-benchmark said no rate".to_owned());
            }
            Ok(f64::from(size.pages * (1 + WRITES)) / seconds)
        }
        Row::Receive | Row::Transmit => {
            let report: Value = serde_json::from_str(first).map_err(|error| format!("iperf3: {error}"))?;
            let bits = &report["end"]["sum_received"]["bits_per_second"];
            bits.as_f64().map(|bits| bits / 1e6).ok_or_else(|| {
                format!("iperf3 said no rate: {}", report["error"].as_str().unwrap_or("nothing"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { pages: 40, ..Size::new(true, true) };

    fn said(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn every_row_that_the_guest_does_not_do_by_itself_has_clients() {
        for row in Row::ALL {
            assert_eq!(commands(row, &SIZE, "10.77.0.2").is_empty(), row.is_batch(), "{}", row.name());
        }
        assert!(commands(Row::Database, &SIZE, "x")[0].contains(&"--transactions=10".into()));
        let shop = commands(Row::Shop, &SIZE, "10.77.0.2");
        assert!(shop[0].contains(&"http://10.77.0.2/10.html".into()));
        assert!(commands(Row::Transmit, &SIZE, "x")[0].contains(&"--reverse".into()));
    }

    #[test]
    fn the_rate_is_what_the_clients_say() {
        let pgbench =
            "number of failed transactions: 0 (0.000%)\ntps = 12.5 (without initial connection time)\n";
        assert_eq!(rate(Row::Database, &SIZE, &said(&[pgbench]), 1.0), Ok(12.5));
        let ab = "Complete requests:      40\nFailed requests:        0\n";
        let redis = "\"test\",\"rps\"\n\"SET\",\"120.5\"\n";
        assert_eq!(rate(Row::Shop, &SIZE, &said(&[ab, redis]), 10.0), Ok(20.0));
        let iperf = r#"{"end":{"sum_received":{"bits_per_second":2500000.0}}}"#;
        assert_eq!(rate(Row::Receive, &SIZE, &said(&[iperf]), 1.0), Ok(2.5));
    }

    #[test]
    fn what_failed_is_no_rate() {
        assert!(rate(Row::Database, &SIZE, &said(&["pgbench: error"]), 1.0).is_err());
        assert!(rate(Row::Database, &SIZE, &[], 1.0).is_err());
        let ab = "Complete requests:      40\nFailed requests:        2\n";
        assert!(rate(Row::Shop, &SIZE, &said(&[ab, "\"SET\",\"1\""]), 1.0).is_err());
        assert!(rate(Row::Shop, &SIZE, &said(&["", ""]), 1.0).is_err());
        let error = rate(Row::Transmit, &SIZE, &said(&[r#"{"error":"busy"}"#]), 1.0).unwrap_err();
        assert!(error.contains("busy"), "{error}");
        assert!(rate(Row::Transmit, &SIZE, &said(&["no json"]), 1.0).is_err());
    }
}
