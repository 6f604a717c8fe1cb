//! Plays thousands of seeded worlds against the protocol. `TANDEM_SEEDS` sets how many (default 2,000),
//! `TANDEM_SEED` plays one and prints all that happened.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the trace of a failing seed is what the test shows"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tandem_vmm::role::sim::{self, Outcome, Scenario};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn fail(seed: u64, what: &str) -> ! {
    for line in sim::trace(seed) {
        eprintln!("{line}");
    }
    panic!("{what}\nplay it again: TANDEM_SEED={seed} cargo test -p tandem-vmm --test role_sim");
}

fn play(seeds: u64) -> Vec<Outcome> {
    let next = AtomicU64::new(0);
    let play_some = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return outcomes;
            }
            match sim::run(seed) {
                Ok(outcome) => outcomes.push(outcome),
                Err(violation) => {
                    next.store(seeds, Ordering::Relaxed);
                    fail(seed, &violation.to_string());
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(play_some);
        let mut outcomes = play_some();
        match other.join() {
            Ok(more) => outcomes.extend(more),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        outcomes
    })
}

#[test]
fn no_seed_breaks_the_protocol() {
    if let Some(seed) = number("TANDEM_SEED") {
        match sim::run(seed) {
            Ok(outcome) => {
                sim::trace(seed).iter().for_each(|line| println!("{line}"));
                println!("{outcome:?}");
            }
            Err(violation) => fail(seed, &violation.to_string()),
        }
        return;
    }
    let start = Instant::now();
    let outcomes = play(number("TANDEM_SEEDS").unwrap_or(2_000));
    let sum = |count: fn(&Outcome) -> u32| outcomes.iter().map(count).sum::<u32>();
    let mut killed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.scenario == Scenario::Killed)
        .map(|outcome| outcome.failover.expect("a killed primary is replaced"))
        .collect();
    killed.sort_unstable();
    println!(
        "{} runs, {} events, {} outputs, {} takeovers, {} ran on alone, {} lost, {} refused, {} diverged, {} running at the end, {:.1} s",
        outcomes.len(),
        outcomes.iter().map(|outcome| outcome.events).sum::<u64>(),
        outcomes.iter().map(|outcome| outcome.outputs).sum::<usize>(),
        sum(|outcome| outcome.takeovers),
        sum(|outcome| outcome.alone),
        sum(|outcome| outcome.lost),
        sum(|outcome| outcome.refused),
        sum(|outcome| outcome.diverged),
        outcomes.iter().filter(|outcome| outcome.running).count(),
        start.elapsed().as_secs_f64(),
    );
    println!(
        "kill to first output of the backup: p50 {:.1} ms, max {:.1} ms",
        killed[killed.len() / 2] as f64 / 1e6,
        killed[killed.len() - 1] as f64 / 1e6
    );
    // Bound: 50 ms of silence, at most 8 ms at the arbiter, draining, and the guest's next output.
    assert!(killed[killed.len() - 1] < 150_000_000, "a failover took too long");
    for outcome in &outcomes {
        match outcome.scenario {
            Scenario::Calm => {
                assert!(outcome.running && outcome.takeovers == 0 && outcome.alone == 0, "{outcome:?}");
            }
            Scenario::HandedOver => assert!(outcome.running && outcome.takeovers == 1, "{outcome:?}"),
            Scenario::Killed | Scenario::Frozen | Scenario::Squeezed => {
                assert!(outcome.running, "{outcome:?}");
            }
            Scenario::Rejoined => {
                assert!(outcome.running && outcome.alone == 1 && outcome.takeovers == 1, "{outcome:?}");
            }
            Scenario::Anything => {}
        }
    }
    // The worlds are rough enough to mean something.
    assert!(sum(|outcome| outcome.takeovers) > outcomes.len() as u32 / 5);
    assert!(sum(|outcome| outcome.alone) > outcomes.len() as u32 / 10);
    assert!(sum(|outcome| outcome.lost) > outcomes.len() as u32 / 10);
    assert!(sum(|outcome| outcome.diverged) > 0 && sum(|outcome| outcome.refused) > 0);
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..10 {
        assert_eq!(sim::trace(seed), sim::trace(seed));
    }
}
