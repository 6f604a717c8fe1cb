//! The properties, watched from outside: what left which host, and who is the machine.

use std::collections::BTreeMap;

/// One life of a process: the host, and how often it was started there.
pub(super) type Life = (usize, u32);

/// The outside world's view.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Who is the machine by right.
    pub(super) holder: Option<Life>,
    /// Every output that left, by number.
    left: BTreeMap<u64, u64>,
    /// When the last one did.
    pub(super) last: u64,
}

impl Check {
    /// A side starts the guest, or goes live, with a guest that has made `outputs` so far.
    pub(super) fn take_over(&mut self, who: Life, outputs: &[u64]) -> Result<(), String> {
        self.holder = Some(who);
        for (number, value) in &self.left {
            if outputs.get(*number as usize) != Some(value) {
                return Err(format!(
                    "{who:?} goes live and cannot reproduce output {number}, which has left: it has {} outputs",
                    outputs.len()
                ));
            }
        }
        Ok(())
    }

    /// A primary runs on alone.
    pub(super) fn run_alone(&self, who: Life) -> Result<(), String> {
        match self.holder {
            Some(holder) if holder == who => Ok(()),
            holder => Err(format!("{who:?} runs on alone, but the machine is {holder:?}")),
        }
    }

    /// An output leaves a host. `may_follow`: for each other side that may still go live, what it could
    /// reproduce.
    pub(super) fn leaves(
        &mut self,
        now: u64,
        who: Life,
        (number, value): (u64, u64),
        may_follow: &[(Life, Option<u64>)],
    ) -> Result<(), String> {
        if self.holder != Some(who) {
            return Err(format!("output {number} leaves {who:?} while the machine is {:?}", self.holder));
        }
        if let Some((follower, has)) = may_follow.iter().find(|(_, has)| *has != Some(value)) {
            return Err(format!(
                "output {number} leaves {who:?}, but {follower:?} may take over and has {has:?} for it, not {value}"
            ));
        }
        if let Some(before) = self.left.insert(number, value).filter(|before| *before != value) {
            return Err(format!("output {number} left with two values, {before} and {value}"));
        }
        self.last = now;
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.left.len()
    }
}

/// The arbiter: one winner per generation, later claims bar earlier ones.
#[derive(Debug, Default)]
pub(super) struct Arbiter {
    claims: BTreeMap<u64, Life>,
}

impl Arbiter {
    pub(super) fn claim(&mut self, generation: u64, who: Life) -> bool {
        if self.latest() >= generation {
            return self.claims.get(&generation) == Some(&who);
        }
        self.claims.insert(generation, who);
        true
    }

    pub(super) fn latest(&self) -> u64 {
        self.claims.keys().next_back().copied().unwrap_or(0)
    }

    pub(super) fn winner(&self, generation: u64) -> Option<Life> {
        self.claims.get(&generation).copied()
    }
}
