//! What carries the log, by the config.

use std::time::Duration;

use tandem_logchan::channel::Link;
#[cfg(feature = "rdma")]
use tandem_logchan::transport::rdma::{Completion, RdmaConfig};
use tandem_logchan::transport::tcp::TcpConfig;

#[cfg(feature = "rdma")]
use crate::host::config::{LogAck, LogTransport};
use crate::host::config::{LogCompletion, PairConfig};

/// Patience with a peer that shakes hands, and that sets up an RDMA connection.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a thread with `completion = "adaptive"` looks before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// How the log is carried.
pub(super) fn link(pair: &PairConfig) -> Link {
    let buffer = pair.log_buffer as usize;
    match pair.transport {
        #[cfg(feature = "rdma")]
        LogTransport::Rdma => Link::Rdma(RdmaConfig {
            send_buffer: buffer,
            ring: buffer,
            completion: match pair.completion {
                LogCompletion::Events => Completion::Events,
                LogCompletion::Adaptive => Completion::Adaptive(SPIN),
                LogCompletion::Busy => Completion::Busy,
            },
            placed: pair.ack == LogAck::Placed,
            patience: patience(pair),
        }),
        // The config refuses RDMA in a build without it.
        _ => TcpConfig {
            send_buffer: buffer,
            spin: match pair.completion {
                LogCompletion::Events => Duration::ZERO,
                LogCompletion::Adaptive => SPIN,
                LogCompletion::Busy => Duration::MAX,
            },
            registered: pair.registered_buffers,
            busy_poll: pair.busy_poll,
            ..TcpConfig::default()
        }
        .into(),
    }
}

/// Patience with a peer that shakes hands: who allows for long silence has slow hosts.
pub(super) fn patience(pair: &PairConfig) -> Duration {
    let silence = pair.heartbeat.saturating_mul(pair.missed);
    HANDSHAKE.max(silence.saturating_mul(20))
}
