//! The arithmetic of two rings and their credits, without any I/O.
//!
//! Each direction has a ring in the receiver's memory. The sender writes a message (bytes that do not
//! cross the ring's end) and names its length in the immediate value, which also takes one receive
//! request of the receiver. The receiver writes back how many bytes and how many messages it has
//! taken out: the credit. Both sides count from zero, never wrap (2^64 bytes), and believe no number
//! that cannot be true.

/// Receive requests that each side keeps posted: messages that may be under way in one direction.
pub(super) const SLOTS: u64 = 512;
/// Writes of one side that may be under way: all messages, and credits beside them.
pub(super) const SENDS: usize = 2 * SLOTS as usize;
/// Of the receive requests, so many are for messages without data, which bring credits to a peer that sleeps.
pub(super) const RESERVED: u64 = 8;
/// The immediate value of a message that ends the stream.
pub(super) const END: u32 = u32::MAX;
/// Bytes of a message at most.
pub(super) const MAX_MESSAGE: usize = 256 << 10;
/// Bytes of a credit on the wire and in memory: bytes, messages, and both folded, so that a torn or
/// scribbled credit is seen.
pub(super) const CREDIT_LEN: usize = 24;
const FOLD: u64 = 0x7461_6e64_656d_4352;

/// A number from the peer that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lie(pub(super) &'static str);

/// What a receiver has taken out, counted from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    pub(super) bytes: u64,
    pub(super) messages: u64,
}

impl Credit {
    /// As three words, to be written to the peer.
    pub(super) const fn words(self) -> [u64; 3] {
        [self.bytes, self.messages, self.bytes.rotate_left(32) ^ self.messages ^ FOLD]
    }

    /// From three words. `None`: they do not belong together, because a newer credit is just being
    /// written, or somebody scribbled.
    pub(super) fn from_words(words: [u64; 3]) -> Option<Self> {
        let credit = Self { bytes: words[0], messages: words[1] };
        (credit.words() == words).then_some(credit)
    }
}

/// The sender's view of the ring in the peer's memory.
#[derive(Debug)]
pub(super) struct Outbound {
    ring: u64,
    sent: Credit,
    taken: Credit,
}

impl Outbound {
    /// For a ring of `ring` bytes.
    pub(super) const fn new(ring: u64) -> Self {
        let none = Credit { bytes: 0, messages: 0 };
        Self { ring, sent: none, taken: none }
    }

    /// Where in the ring a message of up to `want` bytes may go, and how long it may be; `None`: not
    /// now.
    pub(super) fn next(&self, want: usize) -> Option<(u64, usize)> {
        let offset = self.sent.bytes % self.ring;
        let free = self.ring - (self.sent.bytes - self.taken.bytes);
        let len = (want.min(MAX_MESSAGE) as u64).min(free).min(self.ring - offset);
        (len > 0 && self.under_way() < SLOTS - RESERVED).then_some((offset, len as usize))
    }

    /// Whether a message without data may go.
    pub(super) const fn may_ring(&self) -> bool {
        self.under_way() < SLOTS
    }

    /// A message of `len` bytes was sent.
    pub(super) const fn sent(&mut self, len: usize) {
        self.sent.bytes += len as u64;
        self.sent.messages += 1;
    }

    const fn under_way(&self) -> u64 {
        self.sent.messages - self.taken.messages
    }

    /// Takes in a credit. Whether it is news.
    pub(super) fn credit(&mut self, credit: Credit) -> Result<bool, Lie> {
        if credit.bytes > self.sent.bytes || credit.messages > self.sent.messages {
            return Err(Lie("it claims to have taken more than was sent"));
        }
        if credit.bytes < self.taken.bytes || credit.messages < self.taken.messages {
            return Err(Lie("it takes back what it had claimed to have taken"));
        }
        let news = credit != self.taken;
        self.taken = credit;
        Ok(news)
    }
}

/// The receiver's view of the ring in its own memory.
#[derive(Debug)]
pub(super) struct Inbound {
    ring: u64,
    arrived: u64,
    taken: Credit,
    told: Credit,
    ended: bool,
}

impl Inbound {
    /// For a ring of `ring` bytes.
    pub(super) const fn new(ring: u64) -> Self {
        let none = Credit { bytes: 0, messages: 0 };
        Self { ring, arrived: 0, taken: none, told: none, ended: false }
    }

    /// A message arrived whose immediate value is this, and its receive request is posted anew.
    pub(super) fn message(&mut self, immediate: u32) -> Result<(), Lie> {
        self.taken.messages += 1;
        if self.ended {
            return Err(Lie("it writes behind its own end of the stream"));
        }
        if immediate == END {
            self.ended = true;
            return Ok(());
        }
        let len = u64::from(immediate);
        if len > self.ring - (self.arrived - self.taken.bytes) {
            return Err(Lie("it claims to have written more than the ring can hold"));
        }
        self.arrived += len;
        Ok(())
    }

    /// The next contiguous bytes: where in the ring, and how many.
    pub(super) fn readable(&self) -> (usize, usize) {
        let offset = self.taken.bytes % self.ring;
        let len = (self.arrived - self.taken.bytes).min(self.ring - offset);
        (offset as usize, len as usize)
    }

    /// `len` of the readable bytes were taken out.
    pub(super) const fn take(&mut self, len: usize) {
        self.taken.bytes += len as u64;
    }

    /// Whether the peer said that nothing follows.
    pub(super) const fn ended(&self) -> bool {
        self.ended
    }

    /// A credit that the peer should get, if enough has come together; it counts as told.
    pub(super) fn due(&mut self) -> Option<Credit> {
        let bytes = self.taken.bytes - self.told.bytes;
        let messages = self.taken.messages - self.told.messages;
        (bytes >= self.ring / 4 || messages >= SLOTS / 4).then(|| {
            self.told = self.taken;
            self.told
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Sender and receiver in any order of steps: nothing overtakes, nothing is overwritten before
        /// it was taken, no honest number is called a lie, and it never gets stuck.
        #[test]
        fn an_honest_pair_moves_a_stream(steps in proptest::collection::vec((0_u8..4, 1_usize..900), 1..2000)) {
            let ring = 1024_usize;
            let (mut out, mut inbound) = (Outbound::new(ring as u64), Inbound::new(ring as u64));
            let mut memory = vec![0_u8; ring];
            let mut wire = std::collections::VecDeque::new();
            let mut credit = Credit::default();
            let (mut next, mut due) = (0_u8, 0_u8);
            let mut read = |inbound: &mut Inbound, memory: &[u8], most: usize| {
                let (offset, len) = inbound.readable();
                let len = len.min(most);
                for byte in &memory[offset..offset + len] {
                    assert_eq!(*byte, due);
                    due = due.wrapping_add(1);
                }
                inbound.take(len);
                inbound.due()
            };
            for (step, len) in steps {
                match step {
                    0 => if let Some((offset, len)) = out.next(len) {
                        for byte in &mut memory[offset as usize..offset as usize + len] {
                            *byte = next;
                            next = next.wrapping_add(1);
                        }
                        out.sent(len);
                        wire.push_back(len as u32);
                    },
                    1 => if let Some(immediate) = wire.pop_front() {
                        prop_assert_eq!(inbound.message(immediate), Ok(()));
                    },
                    2 => if let Some(told) = read(&mut inbound, &memory, len) {
                        credit = told;
                    },
                    _ => prop_assert!(out.credit(credit).is_ok()),
                }
            }
            while let Some(immediate) = wire.pop_front() {
                prop_assert_eq!(inbound.message(immediate), Ok(()));
            }
            for _ in 0..2 {
                if let Some(told) = read(&mut inbound, &memory, usize::MAX) {
                    credit = told;
                }
            }
            prop_assert!(out.credit(credit).is_ok());
            prop_assert!(out.next(1).is_some(), "a reader that took everything has told enough to go on");
        }

        /// Any words: either a credit that was folded so, or none.
        #[test]
        fn torn_credits_are_seen(a in any::<[u64; 2]>(), b in any::<[u64; 2]>()) {
            let (old, new) = (
                Credit { bytes: a[0], messages: a[1] },
                Credit { bytes: b[0], messages: b[1] },
            );
            prop_assert_eq!(Credit::from_words(new.words()), Some(new));
            let (o, n) = (old.words(), new.words());
            let torn = Credit::from_words([n[0], o[1], o[2]]);
            prop_assert!(torn.is_none() || a[0] == b[0] || torn == Some(old));
        }
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        let mut out = Outbound::new(1024);
        out.sent(100);
        assert!(out.credit(Credit { bytes: 101, messages: 1 }).is_err());
        assert!(out.credit(Credit { bytes: 100, messages: 2 }).is_err());
        assert_eq!(out.credit(Credit { bytes: 50, messages: 1 }), Ok(true));
        assert!(out.credit(Credit { bytes: 49, messages: 1 }).is_err());

        let mut inbound = Inbound::new(1024);
        assert_eq!(inbound.message(1000), Ok(()));
        assert!(inbound.message(25).is_err(), "more than the ring holds");
        let mut inbound = Inbound::new(1024);
        assert_eq!(inbound.message(END), Ok(()));
        assert!(inbound.ended());
        assert!(inbound.message(0).is_err(), "behind the end");
    }

    #[test]
    fn messages_without_data_have_slots_of_their_own() {
        let mut out = Outbound::new(1 << 20);
        while out.next(1).is_some() {
            out.sent(1);
        }
        for _ in 0..RESERVED {
            assert!(out.may_ring());
            out.sent(0);
        }
        assert!(!out.may_ring());
    }
}
