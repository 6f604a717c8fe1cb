//! Log that is placed, and how the channel ends.

use tandem_logchan::ack::Placed;
use tandem_logchan::loss::Loss;
use tandem_logchan::transport::TransportError;

use super::super::clock::now;
use super::{Channel, Loop};
use crate::role::Moment;
use crate::role::event::{ChannelLoss, Divergence, Event};

impl Loop {
    /// `waited`: this thread was waiting for it.
    pub(super) fn take_placed(&mut self, placed: Placed, waited: bool) {
        // The protocol must have heard that it was sent.
        self.take_sent();
        let now = now();
        let sent = Moment::from_nanos(placed.stamp);
        self.s.gate.delays.acknowledged(placed.sequence, sent, waited.then_some(now), &self.s.shared.marks);
        if let Some(actions) = self.s.side.on_placed(now, self.s.generation, placed.sequence) {
            self.perform(&actions);
        }
        self.release_acknowledged();
    }

    pub(super) fn lose(&mut self, loss: &Loss) {
        self.s.channel = Channel::Closed;
        let how = match loss {
            Loss::Goodbye { .. } | Loss::Transport(TransportError::Closed) => ChannelLoss::Closed,
            Loss::Transport(_) => ChannelLoss::Reset,
            _ => ChannelLoss::Corrupt,
        };
        tracing::info!(%loss, ?how, "the log channel is over");
        if self.s.placed && self.s.acks.is_none() && how == ChannelLoss::Corrupt {
            // Outputs may have left on the strength of what cannot be read.
            tracing::error!("log that was placed cannot be read: this backup will not go live");
            let position = self.s.board.executed().position;
            self.on(now(), Event::Diverged(Divergence { position, expected: 0, found: 0 }));
        }
        self.on(now(), Event::ChannelLost { generation: self.s.generation, loss: how });
    }

    /// What was placed is still read: its end shows as a loss.
    pub(super) fn close_channel(&mut self) {
        if self.s.placed
            && let Channel::Log(log) = &mut self.s.channel
            && log.shut()
        {
            return;
        }
        self.s.channel = Channel::Closed;
    }
}
