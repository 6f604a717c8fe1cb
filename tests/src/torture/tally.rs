//! What many runs came to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::fault::Kind;
use super::run::Outcome;

/// The line at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Runs made.
    pub runs: u64,
    /// INCR and SET acknowledged.
    pub ops_acked: u64,
    /// Of these, gone.
    pub lost: u64,
    /// Runs in which two sides ran the VM.
    pub two_live: u64,
    /// Runs in which a side said that the two differ.
    pub diverged: u64,
    /// Runs in which anything was not as it must be.
    pub failed: u64,
    /// Runs whose sides had switched by themselves before the fault, for want of processor time; all else
    /// was checked in them.
    pub unprompted: u64,
    /// SIGKILL of the primary to the first reply of the backup.
    pub failover_ms: Spread,
    /// Each kind of fault: its runs, those that failed, and how long clients waited where that is a figure.
    pub by_fault: BTreeMap<&'static str, Part>,
    /// What draws all of this again.
    pub seed: u64,
    /// "ok", or what is wrong.
    pub verdict: String,
}

/// One kind of fault.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Part {
    /// Runs made.
    pub runs: u64,
    /// Runs that failed.
    pub failed: u64,
    /// From the fault to the first reply after it.
    #[serde(skip_serializing_if = "Spread::is_empty")]
    pub outage_ms: Spread,
}

/// A distribution, in milliseconds; absent values where there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half are at most this.
    pub p50: Option<f64>,
    /// 99 of 100 are at most this.
    pub p99: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
}

impl Spread {
    /// The distribution of some times.
    #[must_use]
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        // The smallest value that so many per cent of all do not exceed.
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).map(|time| (time.as_secs_f64() * 1e5).round() / 100.0)
        };
        Self { p50: at(50), p99: at(99), max: at(100) }
    }

    fn is_empty(&self) -> bool {
        self.max.is_none()
    }
}

/// Adds up.
#[must_use]
pub fn summary(outcomes: &[Outcome], seed: u64, interrupted: bool) -> Summary {
    let count =
        |what: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| what(outcome)).count() as u64;
    let outages = |kind| -> Vec<_> {
        outcomes
            .iter()
            .filter(|outcome| outcome.kind == Some(kind))
            .filter_map(|outcome| outcome.outage)
            .collect()
    };
    let by_fault = Kind::RDMA.map(|kind| {
        let part = Part {
            runs: count(&|outcome| outcome.kind == Some(kind)),
            failed: count(&|outcome| outcome.kind == Some(kind) && outcome.failed()),
            outage_ms: Spread::of(outages(kind)),
        };
        (kind.name(), part)
    });
    let mut summary = Summary {
        runs: outcomes.len() as u64,
        ops_acked: outcomes.iter().map(|outcome| outcome.acked).sum(),
        lost: outcomes.iter().map(|outcome| outcome.lost).sum(),
        two_live: count(&|outcome| outcome.two_live),
        diverged: count(&|outcome| outcome.diverged),
        failed: count(&Outcome::failed),
        unprompted: count(&|outcome| outcome.unprompted),
        failover_ms: Spread::of(outages(Kind::KillPrimary)),
        by_fault: by_fault.into_iter().filter(|(_, part)| part.runs > 0).collect(),
        seed,
        verdict: String::new(),
    };
    summary.verdict = verdict(&summary, interrupted);
    summary
}

fn verdict(summary: &Summary, interrupted: bool) -> String {
    let wrong = [
        (summary.lost, "acknowledged operations lost"),
        (summary.two_live, "runs with two live sides"),
        (summary.diverged, "runs that diverged"),
        (summary.failed, "failed runs"),
    ];
    let mut words: Vec<_> =
        wrong.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if interrupted {
        words.push("interrupted".to_owned());
    }
    if summary.runs == 0 {
        words.push("nothing was run".to_owned());
    }
    if words.is_empty() { "ok".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let millis =
            |range: std::ops::RangeInclusive<u64>| range.map(Duration::from_millis).collect::<Vec<_>>();
        let spread = Spread::of(millis(1..=200));
        assert_eq!(spread, Spread { p50: Some(100.0), p99: Some(198.0), max: Some(200.0) });
        let spread = Spread::of(millis(7..=7));
        assert_eq!(spread, Spread { p50: Some(7.0), p99: Some(7.0), max: Some(7.0) });
        assert!(Spread::of(vec![]).is_empty());
    }

    #[test]
    fn anything_wrong_is_in_the_verdict() {
        let good = Outcome {
            kind: Some(Kind::KillPrimary),
            acked: 10,
            outage: Some(Duration::from_millis(60)),
            ..Outcome::default()
        };
        let ok = summary(&[good.clone(), good.clone()], 1, false);
        assert_eq!((ok.verdict.as_str(), ok.ops_acked, ok.failover_ms.p50), ("ok", 20, Some(60.0)));
        assert_eq!(summary(&[], 1, false).verdict, "nothing was run");
        assert_eq!(summary(std::slice::from_ref(&good), 1, true).verdict, "interrupted");
        let bad = [
            Outcome { lost: 2, ..good.clone() },
            Outcome { two_live: true, ..good.clone() },
            Outcome { diverged: true, ..good.clone() },
            Outcome { problems: vec!["?".to_owned()], ..good.clone() },
        ];
        let all = summary(&bad, 1, false);
        assert_eq!(
            all.verdict,
            "2 acknowledged operations lost, 1 runs with two live sides, 1 runs that diverged, 4 failed runs"
        );
        for outcome in bad {
            assert_ne!(summary(&[good.clone(), outcome], 1, false).verdict, "ok");
        }
    }
}
