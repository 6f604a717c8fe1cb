//! A pair of the embedded guest, and one fault in each test.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of it is test code")]

use std::time::{Duration, Instant};

use tandem_tests::bed::Bed;
use tandem_tests::client::{Client, Load};
use tandem_tests::lab;
use tandem_tests::side::Side;
use tandem_tests::torture::fault::Kind;
use tandem_tests::torture::tally::Summary;
use tandem_tests::torture::{Plan, torture};
use tandem_vmm::host::control::{Role, Status};

fn bed() -> Option<Bed> {
    Bed::to_test("failover").unwrap()
}

fn runs(kind: Kind, runs: u64) -> Option<Summary> {
    let _alone = lab::alone().unwrap();
    let mut bed = bed()?;
    let plan = Plan { runs, seed: 20, kinds: vec![kind], keep: false };
    let mut told = vec![];
    let summary = torture(&mut bed, &plan, &mut told).unwrap();
    println!("{}{summary:?}", String::from_utf8(told).unwrap());
    assert_eq!(summary.verdict, "ok", "{kind}: the lines above say why");
    assert!(summary.ops_acked > 100, "{summary:?}");
    Some(summary)
}

#[test]
fn the_backup_takes_over_from_a_killed_primary() {
    let Some(summary) = runs(Kind::KillPrimary, 3) else { return };
    assert!(summary.failover_ms.max.is_some() || summary.unprompted > 0, "{summary:?}");
}

#[test]
fn the_primary_runs_on_when_its_backup_is_killed() {
    runs(Kind::KillBackup, 2);
}

#[test]
fn a_primary_that_was_frozen_sends_nothing_after_the_take_over() {
    runs(Kind::FreezePrimary, 4);
}

#[test]
fn a_backup_that_was_frozen_halts() {
    runs(Kind::FreezeBackup, 2);
}

#[test]
fn a_cut_between_the_sides_leaves_one() {
    runs(Kind::CutLog, 2);
}

#[test]
fn without_the_arbiter_nobody_goes_live() {
    runs(Kind::ArbiterAway, 2);
}

#[test]
fn a_slow_backup_holds_nobody_up_for_long() {
    runs(Kind::SlowBackup, 2);
}

#[test]
fn two_kills_leave_nobody() {
    runs(Kind::KillBoth, 1);
}

#[test]
fn a_deliberate_switch_loses_nothing() {
    runs(Kind::Failover, 2);
}

#[test]
fn a_switch_may_be_asked_of_the_backup() {
    let _alone = lab::alone().unwrap();
    let Some(mut bed) = bed() else { return };
    let mut pair = bed.pair().unwrap();
    let load = Load { patience: bed.patience(5.0), ..Load::new(bed.server(), 1) };
    let client = Client::start(Some(bed.lab.client()), load).unwrap();
    client.wait_for_replies(Instant::now(), bed.patience(5.0)).unwrap();
    pair.backup.failover().unwrap();
    pair.backup.wait_for_role(&[Role::Live], bed.patience(5.0)).unwrap();
    let status = pair.primary.process.wait(bed.patience(5.0)).expect("the primary ends");
    assert!(status.success(), "{}", pair.primary.process.last_words(10));
    client.wait_for_replies(Instant::now(), bed.patience(5.0)).unwrap();
    assert!(client.finish().unwrap().clean());
}

/// What a side says once it is so far, or when `patience` is over: a status is gathered now and then, and the
/// other tests take their share of a backup's core.
fn once(side: &Side, patience: Duration, so_far: impl Fn(&Status) -> bool) -> Status {
    let deadline = Instant::now() + patience;
    loop {
        let status = side.status().unwrap();
        if so_far(&status) || Instant::now() >= deadline {
            return status;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether it took packets in.
fn took_packets(status: &Status) -> bool {
    status.log.iter().any(|told| told.kind == "packet" && told.entries > 0)
}

#[test]
fn both_sides_tell_their_state() {
    let _alone = lab::alone().unwrap();
    let Some(mut bed) = bed() else { return };
    let mut pair = bed.pair().unwrap();
    let patience = bed.patience(5.0);
    let load = Load { patience, ..Load::new(bed.server(), 1) };
    let client = Client::start(Some(bed.lab.client()), load).unwrap();
    client.wait_for_replies(Instant::now(), patience).unwrap();
    let primary = once(&pair.primary, patience, |status| {
        took_packets(status) && status.output_delay.as_ref().is_some_and(|delay| delay.max_us > 0.0)
    });
    let backup = once(&pair.backup, patience, |status| {
        took_packets(status) && status.guest_time_ns >= primary.guest_time_ns
    });
    assert_eq!((primary.name.as_str(), backup.name.as_str()), ("failover", "failover"));
    assert_eq!((primary.role, backup.role), (Role::Primary, Role::Backup));
    assert_eq!(primary.generation, backup.generation);
    assert!(primary.generation > 0);
    for status in [&primary, &backup] {
        assert!(status.peer.as_ref().is_some_and(|peer| peer.alive), "{status:?}");
        // A backup tells of its replay what the primary tells of its run.
        assert!(status.exits.values().sum::<u64>() > 0, "{status:?}");
        assert!(status.guest_time_ns > 0 && status.digest.is_some() && status.lag.is_some(), "{status:?}");
        for kind in ["time", "packet", "framing"] {
            let told = status.log.iter().find(|told| told.kind == kind).unwrap();
            assert!(told.entries > 0 && told.bytes > 0, "{kind}: {status:?}");
        }
    }
    let delay = primary.output_delay.unwrap();
    // Half of all outputs may well wait for nothing, but none for less.
    assert!(delay.count > 0 && delay.p50_us <= delay.p99_us && delay.p99_us <= delay.max_us, "{delay:?}");
    assert!(delay.max_us > 0.0 && delay.stages.iter().any(|stage| stage.p50_us > 0.0), "{delay:?}");
    assert!(client.finish().unwrap().clean());

    let generation = primary.generation;
    pair.primary.process.kill();
    let live = pair.backup.wait_for_role(&[Role::Live], patience).unwrap();
    assert!(live.generation > generation, "{live:?}");
    assert!(live.guest_time_ns >= primary.guest_time_ns, "the guest's time goes on");
    assert!(live.lag.is_none(), "{live:?}");
}

#[test]
fn a_vm_alone_tells_its_state_and_has_nobody_to_hand_over_to() {
    let _alone = lab::alone().unwrap();
    let Some(mut bed) = bed() else { return };
    let patience = bed.patience(5.0);
    let side = bed.alone().unwrap();
    let status = once(&side, patience, |status| status.guest_time_ns > 0 && !status.exits.is_empty());
    assert_eq!((status.name.as_str(), status.role, status.generation), ("failover", Role::Solo, 0));
    assert!(status.guest_time_ns > 0 && status.exits.values().sum::<u64>() > 0, "{status:?}");
    assert!(status.peer.is_none() && status.lag.is_none() && status.output_delay.is_none(), "{status:?}");
    assert!(status.log.is_empty(), "nothing is logged: {status:?}");
    let refusal = side.failover().unwrap_err();
    assert!(format!("{refusal:#}").contains("runs alone"), "{refusal:#}");
}
