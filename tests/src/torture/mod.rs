//! Pairs that are killed, frozen, cut off and starved, with a client that checks.

pub mod fault;
pub mod run;
pub mod tally;

use std::io::{self, Write};

use crate::bed::Bed;

use fault::Kind;
use run::Outcome;
use tally::{Summary, summary};

impl Outcome {
    /// Anything is not as it must be.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.lost > 0 || self.two_live || self.diverged || !self.problems.is_empty()
    }
}

/// Makes so many runs, and tells of each in a line.
///
/// # Errors
/// When the lab itself fails, or nobody listens. Interrupted, it sums up what was done.
pub fn torture(
    bed: &mut Bed,
    runs: u64,
    seed: u64,
    allowed: &[Kind],
    out: &mut dyn Write,
) -> anyhow::Result<Summary> {
    let mut outcomes = Vec::new();
    for number in 0..runs {
        // Each run has a seed of its own, so that it can be run again alone.
        let this = seed.wrapping_add(number);
        let outcome = match run::run(bed, this, allowed) {
            Ok(outcome) => outcome,
            Err(_) if bed.interrupted().requested() => break,
            Err(error) => return Err(error.context(format!("run {} (--seed {this} --runs 1)", number + 1))),
        };
        line(bed, out, number + 1, runs, this, &outcome)?;
        outcomes.push(outcome);
    }
    Ok(summary(&outcomes, seed, bed.interrupted().requested()))
}

fn line(
    bed: &mut Bed,
    out: &mut dyn Write,
    number: u64,
    runs: u64,
    seed: u64,
    outcome: &Outcome,
) -> io::Result<()> {
    let kind = outcome.kind.map_or("?", Kind::name);
    let silence = outcome
        .outage
        .map_or_else(String::new, |outage| format!("{:7.1} ms silent", outage.as_secs_f64() * 1e3));
    let verdict = match (outcome.failed(), outcome.unprompted) {
        (true, _) => "FAILED",
        (false, true) => "ok, but had switched before the fault",
        (false, false) => "ok",
    };
    writeln!(out, "{number:4}/{runs} {kind:<15}{:>7} ops {silence:<18} {verdict}", outcome.acked)?;
    if outcome.failed() {
        for problem in &outcome.problems {
            writeln!(out, "     {}", problem.replace('\n', "\n     "))?;
        }
        let kept = bed.keep();
        writeln!(out, "     again: --seed {seed} --runs 1 --fault {kind}; files: {}", kept.display())?;
    }
    out.flush()
}
