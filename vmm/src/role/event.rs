//! What the protocol is told.

use super::moment::Moment;

/// One thing that happened on this host, to be given to [`super::Side::on`] with the time at which it is
/// handled (not the time at which it happened: a stopped process finds old messages).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// [`super::Side::deadline`] has come. Early, late and spurious ticks do no harm.
    Tick,
    /// A heartbeat of the peer arrived: by datagram, in any order, any number of times.
    Heartbeat(Heartbeat),
    /// A primary that waits, or a live side: a backup is ready to be taken in. It is committed to at once;
    /// the host sends the backup its welcome only on [`super::Action::Welcome`].
    Joined,
    /// A backup that waits: the primary's welcome came, for this generation.
    Welcomed {
        /// The generation of the pair.
        generation: u64,
    },
    /// A primary: log up to here is about to be given to the channel. To be told before it is sent.
    Sent {
        /// Sequence number of the newest batch.
        sequence: u64,
    },
    /// A primary: the backup acknowledged. [`super::Side::on_ack`] is the shorter way.
    Ack(Ack),
    /// A backup: a batch of log is in its memory. [`super::Side::on_batch`] is the shorter way.
    Batch(Batch),
    /// A backup: log up to here was executed. After [`Event::GuestEnded`] if it ended the guest.
    Executed {
        /// Sequence number of the last batch executed whole.
        sequence: u64,
        /// How long that batch had waited since its receipt, in nanoseconds.
        lag: u64,
        /// The divergence digest after it.
        digest: u64,
    },
    /// A backup: executing the log led elsewhere than on the primary.
    Diverged(Divergence),
    /// The log channel of a generation is over. All that it still held was given as batches before.
    ChannelLost {
        /// The generation of the channel.
        generation: u64,
        /// How it ended.
        loss: ChannelLoss,
    },
    /// The arbiter's answer to [`super::Action::Claim`].
    Verdict {
        /// The generation claimed.
        generation: u64,
        /// The answer.
        verdict: Verdict,
    },
    /// A primary: no room for more log, in its own buffer or in the channel.
    LogFull,
    /// A primary: there is room again.
    LogFree,
    /// The operator wants the other side to take over. Either side may be asked.
    HandOver,
    /// The operator wants this side to end (SIGTERM).
    Leave,
    /// A primary: the guest stands still as [`super::Action::StopGuest`] asked, all its log is in the
    /// channel.
    GuestStopped {
        /// Sequence number of the last batch.
        sequence: u64,
    },
    /// The guest ended by its own wish. On a primary: its log is in the channel, up to the entry that says
    /// so.
    GuestEnded {
        /// Sequence number of the batch with that entry.
        sequence: u64,
    },
}

/// The small message that the sides exchange all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Heartbeat {
    /// The sender's generation. A lower one than the receiver's is ignored; a higher one says that the
    /// sender has won it.
    pub generation: u64,
    /// The sender's clock at sending.
    pub stamp: Moment,
    /// A backup's: the newest stamp that it had from the primary. This is what grants a lease.
    pub echo: Option<Moment>,
    /// A backup's: it has received the log up to here. Counts as an acknowledgement.
    pub received: u64,
    /// What the sender is about.
    pub standing: Standing,
}

/// What the sender of a heartbeat is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// All is well.
    Paired,
    /// A backup whose operator wants it to take over.
    WantsHandOver,
    /// A primary that has stopped its guest, has released every output and will release none any more unless
    /// it wins the next generation. The log ends here.
    HandedOver {
        /// Sequence number of the last batch.
        sequence: u64,
    },
    /// It took its peer for lost and will not go back on that: only the arbiter decides now.
    Claiming,
    /// It has won the generation that it names.
    Won,
    /// A backup that ends, or cannot be used any more. It will never claim.
    Leaving,
}

/// An acknowledgement: on receipt, not on execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ack {
    /// The generation of the channel.
    pub generation: u64,
    /// Log up to here is in the backup's memory.
    pub received: u64,
    /// Log up to here is executed.
    pub executed: u64,
    /// How long the entry executed last had waited, in nanoseconds.
    pub lag: u64,
    /// The divergence digest after `executed`.
    pub digest: u64,
    /// The newest stamp that the backup had from the primary.
    pub echo: Option<Moment>,
}

/// A batch of log, as far as the protocol cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Batch {
    /// The generation of the channel.
    pub generation: u64,
    /// Rising from 1 in each generation.
    pub sequence: u64,
    /// The primary's clock at sending, where the frame carries one.
    pub stamp: Option<Moment>,
}

/// Where replay left the primary's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Divergence {
    /// The position, as the ordinal of the deterministic exit.
    pub position: u64,
    /// The primary's digest there.
    pub expected: u64,
    /// The backup's.
    pub found: u64,
}

/// How the log channel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChannelLoss {
    /// The peer closed it: it ended, or was killed.
    Closed,
    /// Reset, timed out, or unreachable.
    Reset,
    /// Something came that the peer cannot have sent.
    Corrupt,
}

/// The arbiter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The generation is this side's, now or from an earlier claim with the same token.
    Won,
    /// It is somebody else's, or a later one is already claimed.
    Lost,
    /// No answer, or an ambiguous one: the claim may have taken effect or may yet.
    Unreachable,
}
