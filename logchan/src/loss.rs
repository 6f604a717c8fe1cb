//! Why a channel was given up.
//!
//! A channel is lost once and for all: after a [`Loss`] nothing more is taken from it, and the caller
//! turns to the arbiter. All frames accepted before stay valid.

use thiserror::Error;

use crate::ack::AckError;
use crate::frame::{FrameError, Kind};
use crate::transport::TransportError;

/// The reason for which a channel is lost.
#[derive(Debug, Error)]
pub enum Loss {
    /// What carries the bytes failed, or the peer closed it.
    #[error("the log channel broke")]
    Transport(#[from] TransportError),
    /// The bytes are not the frames the peer sent.
    #[error("the log stream is damaged after frame {after}")]
    Frame {
        /// Sequence number of the last good frame, 0 for none.
        after: u64,
        /// What is wrong.
        #[source]
        error: FrameError,
    },
    /// A frame is missing, or came twice.
    #[error("the log stream has a gap: frame {expected} was due, {found} came")]
    Gap {
        /// Sequence number that was due.
        expected: u64,
        /// Sequence number that came.
        found: u64,
    },
    /// The frame belongs to another generation of the pair.
    #[error("the peer logs for generation {found}, this side is in generation {ours}")]
    Generation {
        /// Generation agreed in the handshake.
        ours: u64,
        /// Generation in the frame.
        found: u64,
    },
    /// A kind of frame that does not travel in this direction.
    #[error("a frame of kind {0:?} does not travel in this direction")]
    Direction(Kind),
    /// An acknowledgement that cannot be true.
    #[error("the backup's acknowledgement cannot be true")]
    Ack(#[from] AckError),
    /// A frame longer than the ring takes.
    #[error(
        "a frame of {len} bytes does not fit the ring, which takes at most {max}: enlarge log_buffer_mib"
    )]
    RingTooSmall {
        /// Length of the frame.
        len: usize,
        /// Longest frame the ring takes.
        max: usize,
    },
    /// The peer ended the log by intention.
    #[error("the peer ended the log in good order after frame {after}")]
    Goodbye {
        /// Sequence number of the goodbye itself.
        after: u64,
    },
    /// The channel had been lost before.
    #[error("the log channel was lost before")]
    LostBefore,
}
