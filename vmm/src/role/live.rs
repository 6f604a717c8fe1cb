//! A side that is the machine without a backup: solo, or after it has won.

use super::Next;
use super::action::{Action, Actions, Report};
use super::arbitrating::beat;
use super::event::{Event, Standing};
use super::gate::Gate;
use super::moment::Moment;
use super::timing::Timing;

/// A side that runs the guest without a backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Live {
    pub(super) generation: u64,
    ended: bool,
    next_beat: Moment,
    tells_until: Moment,
}

impl Live {
    pub(super) const fn new(now: Moment, tells_until: Moment, generation: u64, ended: bool) -> Self {
        Self { generation, ended, next_beat: now, tells_until }
    }

    pub(super) fn on(&mut self, event: Event, actions: &mut Actions) -> Next {
        match event {
            Event::Joined if self.generation > 0 && !self.ended => {
                return Next::Pair { generation: self.generation, start: false };
            }
            Event::GuestEnded { .. } => self.ended = true,
            Event::Leave => return Next::Leave,
            Event::HandOver => actions.push(Action::Report(Report::NoPeer)),
            _ => {}
        }
        Next::Stay
    }

    pub(super) fn tick(&mut self, now: Moment, timing: &Timing, gate: &Gate, actions: &mut Actions) -> Next {
        if self.ended && gate.held() == 0 {
            return Next::End;
        }
        if now < self.tells_until {
            beat(now, &mut self.next_beat, timing, self.generation, Standing::Won, actions);
        }
        Next::Stay
    }

    pub(super) fn deadline(&self, gate: &Gate) -> Option<Moment> {
        if self.ended && gate.held() == 0 {
            return Some(Moment::ZERO);
        }
        (self.next_beat < self.tells_until).then_some(self.next_beat)
    }
}
