//! How long nobody answered.

use std::time::{Duration, Instant};

/// From `event` to the first reply that was not under way already: to the end of the longest silence
/// among those that begin at the event or right after it. `None` if no reply ends it.
///
/// `replies` in order of time. Replies that were under way at the event come in within `stragglers`.
pub(super) fn outage(replies: &[Instant], event: Instant, stragglers: Duration) -> Option<Duration> {
    let after = &replies[replies.partition_point(|&at| at < event)..];
    let begins = std::iter::once(event).chain(after.iter().copied());
    begins
        .zip(after)
        .take_while(|(begin, _)| begin.saturating_duration_since(event) <= stragglers)
        .max_by_key(|(begin, end)| (end.saturating_duration_since(*begin), std::cmp::Reverse(*begin)))
        .map(|(_, end)| end.saturating_duration_since(event))
        .filter(|_| {
            // Only stragglers, and then nothing: nobody took over.
            after.last().is_some_and(|last| last.saturating_duration_since(event) > stragglers)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(replies_ms: &[u64]) -> Option<u64> {
        let start = Instant::now();
        let at = |ms: &u64| start + Duration::from_millis(*ms);
        let replies: Vec<_> = replies_ms.iter().map(at).collect();
        outage(&replies, at(&1000), Duration::from_millis(10)).map(|outage| outage.as_millis() as u64)
    }

    #[test]
    fn the_silence_right_after_the_event_counts() {
        assert_eq!(measured(&[990, 999, 1060, 1061, 1300]), Some(60), "plain");
        assert_eq!(measured(&[999, 1001, 1003, 1060, 1061]), Some(60), "with stragglers");
        assert_eq!(measured(&[999, 1060, 1500, 1501]), Some(60), "a later silence is another's");
        assert_eq!(measured(&[999, 1001, 1002, 1004, 1012, 1013]), Some(12), "a quick take-over");
    }

    #[test]
    fn without_a_reply_there_is_no_outage_to_measure() {
        assert_eq!(measured(&[]), None);
        assert_eq!(measured(&[999]), None);
        assert_eq!(measured(&[999, 1001, 1004]), None, "stragglers only");
    }
}
