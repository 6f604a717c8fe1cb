//! virtio-rng (virtio 1.3, section 5.4): an entropy source that both sides agree on.
//!
//! Its bytes are a ChaCha20 stream keyed by a seed that was drawn once, when the machine was made, and is part of
//! its configuration. To the guest they are unpredictable; between primary and backup no byte crosses the log.

use std::hash::{Hash, Hasher};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

use super::chain::Chain;
use super::queue::{QueueError, VirtQueue};
use crate::machine::memory::GuestMemory;

/// Entries in the queue.
pub const QUEUE_SIZE: u16 = 64;

/// The most bytes given for one request; the rest of a longer buffer is left as it is.
pub const MAX_REQUEST: u32 = 4096;

/// Which of the key's streams this device takes: the boot seed given to the kernel has the same origin.
const STREAM: u64 = u64::from_be_bytes(*b"virtio_r");

/// What changes while the device runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// How far the stream has been used, in words of 32 bits.
    pub words: u128,
}

/// An entropy source.
pub struct Rng {
    stream: Box<ChaCha20Rng>,

    scratch: Box<[u8]>,
    chain: Chain,

    state: State,
}

impl std::fmt::Debug for Rng {
    /// Leaves out the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rng").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Rng {
    /// An entropy source with the machine's seed.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        let mut stream = ChaCha20Rng::from_seed(seed);
        stream.set_stream(STREAM);
        Self {
            stream: Box::new(stream),
            scratch: vec![0; MAX_REQUEST as usize].into_boxed_slice(),
            chain: Chain::with_room_for(QUEUE_SIZE),
            state: State::default(),
        }
    }

    /// What changes while the device runs.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    pub(super) const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    pub(super) fn hash_state(&self, h: &mut impl Hasher) {
        self.state.hash(h);
    }

    /// Fills the buffers the driver gave. True: interrupt it.
    pub(super) fn notify(&mut self, queue: &mut VirtQueue, mem: &GuestMemory) -> Result<bool, QueueError> {
        for _ in 0..queue.pending(mem)? {
            if !queue.pop(mem, &mut self.chain)? {
                break;
            }
            let head = self.chain.head();
            let len = self.chain.writable_len().min(MAX_REQUEST);
            if len == 0 {
                return Err(QueueError::ShortChain { head });
            }
            let bytes = &mut self.scratch[..len as usize];
            self.stream.fill_bytes(bytes);
            self.state.words = self.stream.get_word_pos();
            self.chain.scatter(mem, 0, bytes)?;
            queue.push_used(mem, head, len)?;
        }
        queue.ask_for_kick(mem)?;
        queue.wants_interrupt(mem)
    }
}
