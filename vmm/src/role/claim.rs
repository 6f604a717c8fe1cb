//! Going to the arbiter, until it has answered. A claim cannot be withdrawn: even one that got no answer may
//! have taken effect, so whoever has asked once must ask until it knows.

use super::action::{Action, Actions, Report};
use super::event::Verdict;
use super::moment::Moment;

/// A claim that waits for the arbiter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    generation: u64,
    retry_at: Option<Moment>,
    reported: bool,
}

impl Claim {
    /// Asks for `generation`.
    pub(super) fn ask(generation: u64, actions: &mut Actions) -> Self {
        actions.push(Action::Claim { generation });
        Self { generation, retry_at: None, reported: false }
    }

    /// The generation asked for.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Did the arbiter fail to answer so far?
    #[must_use]
    pub const fn unreachable(&self) -> bool {
        self.reported
    }

    /// An answer came. `Some(won)` once it is definite and for this claim.
    pub(super) fn on_verdict(
        &mut self,
        now: Moment,
        (generation, verdict): (u64, Verdict),
        retry: u64,
        actions: &mut Actions,
    ) -> Option<bool> {
        if generation != self.generation {
            return None;
        }
        match verdict {
            Verdict::Won => Some(true),
            Verdict::Lost => Some(false),
            Verdict::Unreachable => {
                if !self.reported {
                    actions.push(Action::Report(Report::ArbiterUnreachable { generation }));
                    self.reported = true;
                }
                self.retry_at = Some(now + retry);
                None
            }
        }
    }

    /// Asks again if it is time.
    pub(super) fn tick(&mut self, now: Moment, actions: &mut Actions) {
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
            actions.push(Action::Claim { generation: self.generation });
        }
    }

    pub(super) const fn deadline(&self) -> Option<Moment> {
        self.retry_at
    }
}
