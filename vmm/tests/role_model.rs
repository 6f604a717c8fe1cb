//! Model checking of the protocol: every order of everything, for small bounds, over the very state machines
//! that the host runs.
//!
//! Time is a small number of ticks, one heartbeat each. Nothing forces a side to act when its time has come:
//! a side may be frozen at any point, for any time, and then finds its messages in any order. Of each kind
//! of datagram the latest is on its way: it can be delivered at any later time, any number of times, or
//! never, until a later one of that kind replaces it. (An older stamp or echo says less than a newer one, so
//! nothing dangerous is lost by that; the simulator has the old ones too.) The log channel keeps its order;
//! it can break at any time, each end learning of it or not. The arbiter may answer late, not at all, or say
//! that it is unreachable although the claim has effect or will have it later.
//!
//! `TANDEM_TICKS=1` searches every scenario one tick deeper, in some minutes.

#![allow(clippy::print_stdout, reason = "the counts are what the test shows")]

#[path = "role_model/model.rs"]
mod model;
#[path = "role_model/reached.rs"]
mod reached;
#[path = "role_model/world.rs"]
mod world;

use std::time::Instant;

use model::Bounds;
use reached::*;
use stateright::{Checker, HasDiscoveries, Model};

/// `TANDEM_TICKS` adds so many ticks to every bound, for a longer search.
fn check(mut bounds: Bounds) {
    if let Ok(more) = std::env::var("TANDEM_TICKS") {
        bounds.ticks += more.parse::<u64>().expect("TANDEM_TICKS is a number");
    }
    let start = Instant::now();
    let checker = bounds.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{}: {} states, {} unique, depth {}, {:.1} s",
        bounds.name,
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f64()
    );
    if let Some(path) = checker.discovery("safe") {
        let wrong = path.last_state().wrong;
        panic!("{}: {wrong:?}: {:#?}", bounds.name, path.into_actions());
    }
    checker.assert_properties();
}

#[test]
fn freezes_and_lost_datagrams() {
    check(Bounds {
        name: "freezes and lost datagrams",
        ticks: 4,
        outputs: 1,
        reaches: &[RUNS_ALONE, TAKES_OVER, LOSER_HALTS, BACKUP_HALTS, RACE, FROZEN, HELD_LEASE, DELIVERED],
        ..Bounds::default()
    });
}

#[test]
fn crashes() {
    check(Bounds {
        name: "crashes",
        ticks: 3,
        outputs: 1,
        crashes: 2,
        reaches: &[RUNS_ALONE, TAKES_OVER, RACE, DELIVERED],
        ..Bounds::default()
    });
}

#[test]
fn broken_channel() {
    check(Bounds {
        name: "broken channel",
        ticks: 3,
        outputs: 1,
        cuts: 1,
        lazy: true,
        reaches: &[RUNS_ALONE, TAKES_OVER, LOSER_HALTS, BACKUP_HALTS, RACE, FROZEN, HELD_LEASE, DELIVERED],
        ..Bounds::default()
    });
}

/// With `ack = "placed"`: outputs wait for less, and a backup that takes over reads what was placed.
#[test]
fn placed_log() {
    check(Bounds {
        name: "placed log",
        ticks: 2,
        outputs: 1,
        cuts: 1,
        lazy: true,
        placed: true,
        reaches: &[RUNS_ALONE, TAKES_OVER, LOSER_HALTS, BACKUP_HALTS, RACE, FROZEN, DELIVERED, READ_LATE],
        ..Bounds::default()
    });
}

#[test]
fn placed_log_and_crashes() {
    check(Bounds {
        name: "placed log and crashes",
        ticks: 3,
        outputs: 1,
        crashes: 1,
        placed: true,
        reaches: &[RUNS_ALONE, TAKES_OVER, DELIVERED, READ_LATE],
        ..Bounds::default()
    });
}

#[test]
fn unreachable_arbiter() {
    check(Bounds {
        name: "unreachable arbiter",
        ticks: 2,
        outputs: 1,
        cuts: 1,
        unreachable: 1,
        reaches: &[RUNS_ALONE, TAKES_OVER, LOSER_HALTS, BACKUP_HALTS, RACE, FROZEN, DELIVERED],
        ..Bounds::default()
    });
}

#[test]
fn hand_over() {
    check(Bounds {
        name: "hand-over",
        ticks: 2,
        outputs: 1,
        hand_overs: 1,
        reaches: &[RUNS_ALONE, TAKES_OVER, LOSER_HALTS, DELIVERED, HANDED_OVER, TAKEN_BACK],
        ..Bounds::default()
    });
}

#[test]
fn leaving() {
    check(Bounds {
        name: "leaving",
        ticks: 2,
        outputs: 1,
        leaves: 1,
        reaches: &[RUNS_ALONE, BACKUP_HALTS, LEFT],
        ..Bounds::default()
    });
}

#[test]
fn divergence() {
    check(Bounds {
        name: "divergence",
        ticks: 2,
        outputs: 1,
        cuts: 1,
        divergences: 1,
        lazy: true,
        reaches: &[RUNS_ALONE, TAKES_OVER, DIVERGED, DELIVERED],
        ..Bounds::default()
    });
}

#[test]
fn starting_and_starting_again() {
    check(Bounds {
        name: "starting and starting again",
        ticks: 2,
        outputs: 1,
        crashes: 1,
        from_start: true,
        reaches: &[RUNS_ALONE, TAKES_OVER, REFUSED, STALE_REFUSED, DELIVERED],
        ..Bounds::default()
    });
}
