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

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// So many runs.
    pub runs: u64,
    /// Draws the faults.
    pub seed: u64,
    /// Of these kinds.
    pub kinds: Vec<Kind>,
    /// Leave the files of every run where they are.
    pub keep: bool,
}

/// Makes the runs, and tells of each in a line.
///
/// # Errors
/// When the lab itself fails, or nobody listens. Interrupted, it sums up what was done.
pub fn torture(bed: &mut Bed, plan: &Plan, out: &mut dyn Write) -> anyhow::Result<Summary> {
    let mut outcomes = Vec::new();
    for number in 1..=plan.runs {
        // Each run has a seed of its own, so that it can be run again alone.
        let seed = plan.seed.wrapping_add(number - 1);
        let outcome = match run::run(bed, seed, &plan.kinds) {
            Ok(outcome) => outcome,
            Err(_) if bed.interrupted().requested() => break,
            Err(error) => return Err(error.context(format!("run {number} (--seed {seed} --runs 1)"))),
        };
        tell(out, number, plan.runs, &outcome)?;
        if outcome.failed() {
            let kind = outcome.kind.map_or("?", Kind::name);
            writeln!(out, "     again: --seed {seed} --runs 1 --fault {kind}")?;
        }
        if outcome.failed() || plan.keep {
            writeln!(out, "     files: {}", bed.keep().display())?;
        }
        out.flush()?;
        outcomes.push(outcome);
    }
    Ok(summary(&outcomes, plan.seed, bed.interrupted().requested()))
}

fn tell(out: &mut dyn Write, number: u64, runs: u64, outcome: &Outcome) -> io::Result<()> {
    let kind = outcome.kind.map_or("?", Kind::name);
    let millis = |outage: std::time::Duration| format!("{:7.1} ms silent", outage.as_secs_f64() * 1e3);
    let silence = outcome.outage.map_or_else(String::new, millis);
    let verdict = match (outcome.failed(), outcome.unprompted) {
        (true, _) => "FAILED",
        (false, true) => "ok, but had switched before the fault",
        (false, false) => "ok",
    };
    writeln!(out, "{number:4}/{runs} {kind:<15}{:>7} ops {silence:<18} {verdict}", outcome.acked)?;
    for problem in &outcome.problems {
        writeln!(out, "     {}", problem.replace('\n', "\n     "))?;
    }
    Ok(())
}
