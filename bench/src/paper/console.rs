//! What the guest says on its console, with the host's time: the guest's own clock is virtual.

use std::time::Duration;

/// One line that counts (`tests/linux/bench-init` has them all).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A batch workload begins.
    Begin(String),
    /// A round of it is done.
    Round(String),
    /// All of it is done; the hash of what it computed.
    End(String, String),
    /// The services answer.
    Serving,
    /// The guest resets itself.
    Done,
    /// It cannot go on.
    Failed(String),
}

/// Reads a line; none if it is something else.
pub(crate) fn mark(line: &str) -> Option<Mark> {
    let (what, rest) = line.trim().strip_prefix("TANDEM-BENCH-").map(|text| match text.split_once(' ') {
        Some((what, rest)) => (what, rest),
        None => (text, ""),
    })?;
    let (work, more) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(match what {
        "BEGIN" => Mark::Begin(work.to_owned()),
        "ROUND" => Mark::Round(work.to_owned()),
        "END" => Mark::End(work.to_owned(), more.to_owned()),
        "SERVING" => Mark::Serving,
        "DONE" => Mark::Done,
        "FAILED" => Mark::Failed(rest.to_owned()),
        _ => return None,
    })
}

/// Cuts what a console says into lines, however it comes.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    part: Vec<u8>,
}

impl Lines {
    /// More of it. The lines that are whole now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.part.extend_from_slice(bytes);
        let Some(last) = self.part.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.part.split_off(last + 1);
        let whole = std::mem::replace(&mut self.part, rest);
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

/// Seconds that the rounds took. `warm_up`: the first one is not counted, but only begins the time: it loads programs.
pub(crate) fn rounds(began: Duration, ends: &[Duration], warm_up: bool) -> Vec<f64> {
    let mut before = began;
    let mut took = Vec::new();
    for (index, end) in ends.iter().enumerate() {
        if index > 0 || !warm_up {
            took.push(end.saturating_sub(before).as_secs_f64());
        }
        before = *end;
    }
    took
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_are_marks() {
        assert_eq!(mark("TANDEM-BENCH-BEGIN jvm\r"), Some(Mark::Begin("jvm".to_owned())));
        assert_eq!(mark("TANDEM-BENCH-ROUND compile 3"), Some(Mark::Round("compile".to_owned())));
        assert_eq!(mark("TANDEM-BENCH-END jvm 12ab"), Some(Mark::End("jvm".to_owned(), "12ab".to_owned())));
        assert_eq!(mark("TANDEM-BENCH-SERVING"), Some(Mark::Serving));
        assert_eq!(mark("TANDEM-BENCH-FAILED no disk"), Some(Mark::Failed("no disk".to_owned())));
        assert_eq!(mark("[    0.05] PCI: TANDEM-BENCH-DONE"), None);
        assert_eq!(mark("TANDEM-BENCH-"), None);
        assert_eq!(mark(""), None);
    }

    #[test]
    fn a_line_may_come_in_parts() {
        let mut lines = Lines::default();
        assert!(lines.push(b"TANDEM-BEN").is_empty());
        assert_eq!(lines.push(b"CH-DONE\r\nx\ny"), ["TANDEM-BENCH-DONE", "x"]);
        assert_eq!(lines.push(b"\n"), ["y"]);
    }

    #[test]
    fn the_warm_up_only_begins_the_time() {
        let at = |seconds: &[u64]| seconds.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>();
        let began = Duration::from_secs(10);
        assert_eq!(rounds(began, &at(&[30, 31, 33]), true), [1.0, 2.0]);
        assert_eq!(rounds(began, &at(&[14, 17]), false), [4.0, 3.0]);
        assert!(rounds(began, &at(&[14]), true).is_empty());
    }
}
