//! Torture of the stand-in: a pair that does right passes, and each thing that can be wrong is noticed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of it is test code")]

use std::process::Command;

use tandem_tests::bed::{Bed, Program};
use tandem_tests::config::{Guest, Pace, Spec};
use tandem_tests::lab;
use tandem_tests::standin::Misdeed;
use tandem_tests::torture::fault::Kind;
use tandem_tests::torture::tally::Summary;
use tandem_tests::torture::{Plan, torture};
use tandem_vmm::host::shutdown::Shutdown;

/// Tortures, or says why not.
fn tortured(misdeed: Option<Misdeed>, runs: u64, kinds: &[Kind]) -> Option<Summary> {
    let redis = Command::new("redis-server").arg("--version").output();
    let obstacle = lab::obstacle().or_else(|| redis.err().map(|_| "redis-server is missing".to_owned()));
    if let Some(obstacle) = obstacle {
        println!("skipped: {obstacle}");
        return None;
    }
    let _alone = lab::alone().unwrap();
    let spec = Spec { name: "torture".to_owned(), guest: Guest::Embedded, pace: Pace::BUSY };
    let program = Program::stand_in(misdeed).unwrap();
    let mut bed = Bed::new("test", program, spec, Shutdown::new().unwrap()).unwrap();
    let plan = Plan { runs, seed: 11, kinds: kinds.to_vec(), keep: false };
    let mut told = vec![];
    let summary = torture(&mut bed, &plan, &mut told).unwrap();
    println!("{}{summary:?}", String::from_utf8(told).unwrap());
    Some(summary)
}

#[test]
fn an_honest_pair_passes_every_fault() {
    for kind in Kind::ALL {
        let Some(summary) = tortured(None, 1, &[kind]) else { return };
        assert_eq!(summary.verdict, "ok", "{kind}");
        assert!(summary.ops_acked > 100);
    }
}

#[test]
fn a_backup_that_forgot_is_a_loss() {
    let Some(summary) = tortured(Some(Misdeed::Forget), 1, &[Kind::KillPrimary]) else { return };
    assert!(summary.lost > 100 && summary.failed == 1, "{summary:?}");
}

#[test]
fn a_loser_that_runs_on_is_a_second_live_side() {
    let Some(summary) = tortured(Some(Misdeed::Stubborn), 3, &[Kind::CutLog]) else { return };
    assert!(summary.two_live > 0, "{summary:?}");
}

/// Frozen, taken over, thawed: it sends what was waiting, and then notices.
#[test]
fn a_frozen_primary_that_sends_on_is_a_second_live_side() {
    // Whether an output waits at the moment of the freeze is a matter of luck: try until one does.
    for _ in 0..6 {
        let Some(summary) = tortured(Some(Misdeed::Zombie), 4, &[Kind::FreezePrimary]) else { return };
        if summary.two_live > 0 {
            return;
        }
    }
    panic!("24 frozen primaries that send on, and none was noticed");
}

#[test]
fn a_divergence_is_reported() {
    let Some(summary) = tortured(Some(Misdeed::Diverge), 1, &[Kind::SlowBackup]) else { return };
    assert!(summary.diverged == 1 && summary.failed == 1, "{summary:?}");
}
