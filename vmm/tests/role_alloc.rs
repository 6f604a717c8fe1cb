//! The path from an ack to the gate, and from a batch to its ack, allocates nothing; nor does any other
//! event of a pair at work.

#![allow(clippy::print_stdout, reason = "the time per round is worth seeing")]

#[path = "../../logchan/tests/common/counting.rs"]
mod counting;

use std::time::Instant;

use counting::allocations;
use tandem_vmm::role::action::Action;
use tandem_vmm::role::event::{Batch, Verdict};
use tandem_vmm::role::{Event, Moment, Side, Start, Timing};

fn pair(timing: Timing) -> (Side, Side) {
    let start = Start { generation: 1, claimed: Some(0), alone: false };
    let (mut primary, _) = Side::primary(timing, 256, start).expect("the timing is valid");
    let mut backup = Side::backup(timing, 256, Some(1)).expect("the timing is valid");
    primary.on(Moment::ZERO, Event::Verdict { generation: 1, verdict: Verdict::Won });
    primary.on(Moment::ZERO, Event::Joined);
    backup.on(Moment::ZERO, Event::Welcomed { generation: 1 });
    (primary, backup)
}

#[test]
fn a_pair_at_work_allocates_nothing() {
    const ROUNDS: u64 = 100_000;
    let (mut primary, mut backup) = pair(Timing::default());
    let start = Instant::now();
    let (gone, allocated) = allocations(|| rounds(&mut primary, &mut backup, ROUNDS));
    let time = start.elapsed();
    assert_eq!(allocated, 0, "allocations");
    assert_eq!(gone, ROUNDS);
    println!("{ROUNDS} rounds, {} ns each, both sides, no allocation", time.as_nanos() / u128::from(ROUNDS));
}

/// So many batches with an output each; the number of the last output that left.
fn rounds(primary: &mut Side, backup: &mut Side, rounds: u64) -> u64 {
    let mut gone = 0;
    for sequence in 1..=rounds {
        // A batch with an output every 100 µs.
        let now = Moment::from_nanos(sequence * 100_000);
        primary.on(now, Event::Sent { sequence });
        let number = primary.bind(sequence).expect("room at the gate");
        let ack = backup.on_batch(now, &Batch { generation: 1, sequence, stamp: Some(now) }).expect("an ack");
        assert!(primary.on_ack(now, &ack).is_none());
        gone = primary.releasable(now);
        assert_eq!(gone, number + 1);
        primary.released(gone);
        backup.on(now, Event::Executed { sequence, lag: 1_000, digest: sequence });
        // Heartbeats both ways, when they are due.
        if primary.deadline().is_some_and(|at| at <= now) {
            for action in &primary.on(now, Event::Tick) {
                let Action::SendHeartbeat(heartbeat) = action else { panic!("{action:?}") };
                for answer in &backup.on(now, Event::Heartbeat(heartbeat)) {
                    let Action::SendHeartbeat(heartbeat) = answer else { panic!("{answer:?}") };
                    primary.on(now, Event::Heartbeat(heartbeat));
                }
            }
        }
    }
    gone
}
