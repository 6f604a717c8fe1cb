//! What an ack says beside its numbers.

/// What else the backup has to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckFlags(u32);

impl AckFlags {
    /// The backup's machine differs from the primary's: it must not go live, it needs a state transfer.
    pub const DIVERGED: Self = Self(1);
    /// The backup is being shut down in good order.
    pub const GOING_DOWN: Self = Self(2);
    pub(crate) const KNOWN: u32 = 3;

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::KNOWN)
    }
}
