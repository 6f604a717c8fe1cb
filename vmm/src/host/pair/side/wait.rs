//! Waiting: for acks or for the log, for whatever else there is, and not for longer than the protocol may.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::super::clock::now;
use super::super::{PairError, host};
use super::{Channel, Loop};
use crate::role::Moment;
use crate::role::event::Batch;

/// The longest sleep: for the status. While there is a peer, the protocol's own deadlines are heartbeats.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

impl Loop {
    fn patience(&self) -> Duration {
        let now = now();
        let left = self.s.side.deadline().map_or(u64::MAX, |deadline| deadline.since(now));
        Duration::from_nanos(left).min(LONGEST_SLEEP)
    }

    /// Waits for anything to happen. Whether a descriptor is readable.
    pub(super) fn wait(&mut self) -> Result<bool, PairError> {
        let mut patience = self.patience();
        let mut readable = false;
        if self.lets_acks_collect() {
            readable = self.sleep(patience)?;
            patience = Duration::ZERO;
            if self.s.gate.front().is_some() {
                self.attention.woken();
            }
        }
        self.s.shared.listening.store(matches!(self.s.channel, Channel::Acks(_)), Ordering::Relaxed);
        match &mut self.s.channel {
            Channel::Acks(receiver) => match receiver.poll(Some(patience), || now().as_nanos()) {
                Ok(heard) => {
                    if let Some(placed) = heard.placed {
                        self.take_placed(placed, !patience.is_zero());
                    }
                    if let Some(ack) = heard.ack {
                        self.take_ack(&ack, !patience.is_zero());
                    }
                    if heard.ack.is_none() && heard.placed.is_none() && self.s.gate.front().is_none() {
                        self.attention.idled();
                    }
                    Ok(readable || heard.watched)
                }
                Err(loss) => {
                    self.lose(&loss);
                    Ok(true)
                }
            },
            Channel::Log(receiver) => {
                let before = receiver.received();
                let polled = receiver.poll(Some(patience));
                let (received, echo) = (receiver.received(), receiver.echo());
                if received > before {
                    let now = now();
                    self.lag.begins(received, now);
                    let stamp = (echo != 0).then(|| Moment::from_nanos(echo));
                    // The receiver acknowledges by itself, with the same contents.
                    let batch = Batch { generation: self.s.generation, sequence: received, stamp };
                    let _ = self.s.side.on_batch(now, &batch);
                }
                match polled {
                    Ok(polled) => Ok(polled.watched),
                    Err(loss) => {
                        self.lose(&loss);
                        Ok(true)
                    }
                }
            }
            Channel::Closed => self.sleep(patience),
        }
    }

    /// Nothing waits for an ack: they may collect until an output does, or until the next heartbeat; and that is what costs less of
    /// late. Whoever makes an output from now on wakes this thread.
    fn lets_acks_collect(&mut self) -> bool {
        let idle = matches!(self.s.channel, Channel::Acks(_))
            && self.s.shared.quiet.load(Ordering::Acquire)
            && self.s.gate.front().is_none();
        self.attention.passed(self.s.gate.passed());
        if !idle || self.attention.listens() {
            return false;
        }
        self.s.shared.listening.store(false, Ordering::Relaxed);
        // Pairs with the one in `PairLog::made_outputs`: the output is seen here, or there that nobody listens.
        fence(Ordering::SeqCst);
        self.s.gate.front().is_none()
    }

    /// Waits for the descriptors alone. Whether one is readable.
    fn sleep(&self, patience: Duration) -> Result<bool, PairError> {
        // Rounded up: a wait of zero would spin until the deadline.
        let limit = i32::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(10);
        let mut ready = [0; 16];
        let any = !self.epoll.wait(&mut ready, limit).map_err(host("wait"))?.is_empty();
        Ok(any)
    }
}
