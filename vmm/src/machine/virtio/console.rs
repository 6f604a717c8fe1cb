//! virtio-console (virtio 1.3, section 5.3): one port, no control queues.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use super::chain::Chain;
use super::queue::{QueueError, VirtQueue};
use crate::machine::memory::GuestMemory;
use crate::machine::output::Outputs;

/// Entries in each queue.
pub const QUEUE_SIZE: u16 = 64;

/// The most bytes of input that wait for the guest to give buffers.
pub const MAX_INPUT: usize = 4096;

/// The most bytes in one piece of output.
pub const MAX_OUTPUT: u32 = 1 << 20;

/// Queue of buffers for input to the guest.
const RX: usize = 0;
/// Queue of output from the guest.
const TX: usize = 1;

/// Bytes moved at a time.
const SCRATCH: usize = 4096;

/// What changes while the device runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// Typed, and not yet taken by the guest.
    input: VecDeque<u8>,
}

/// A console.
#[derive(Debug)]
pub struct Console {
    scratch: Box<[u8]>,
    chain: Chain,

    state: State,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// A console.
    #[must_use]
    pub fn new() -> Self {
        Self {
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            chain: Chain::with_room_for(QUEUE_SIZE),
            state: State { input: VecDeque::with_capacity(MAX_INPUT) },
        }
    }

    /// What changes while the device runs.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many bytes of input there is room for. What is typed beyond that is lost.
    #[must_use]
    pub fn input_room(&self) -> usize {
        MAX_INPUT - self.state.input.len()
    }

    pub(super) const QUEUES: &'static [u16] = &[QUEUE_SIZE; 2];

    pub(super) fn reset(&mut self) {
        self.state.input.clear();
    }

    pub(super) fn hash_state(&self, h: &mut impl Hasher) {
        self.state.hash(h);
    }

    /// The driver notified `queue`. True: interrupt it.
    pub(super) fn notify(
        &mut self,
        queue: usize,
        queues: &mut [VirtQueue],
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<bool, QueueError> {
        match queue {
            RX => self.deliver(&mut queues[RX], mem),
            TX => self.transmit(&mut queues[TX], mem, outputs),
            _ => Ok(false),
        }
    }

    /// Bytes were typed. Returns how many there was room for.
    pub(super) fn type_in(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.input_room());
        self.state.input.extend(&bytes[..taken]);
        taken
    }

    /// Moves what was typed into the buffers the guest gave. True: interrupt the driver.
    pub(super) fn deliver(&mut self, queue: &mut VirtQueue, mem: &GuestMemory) -> Result<bool, QueueError> {
        while !self.state.input.is_empty() && queue.pop(mem, &mut self.chain)? {
            let head = self.chain.head();
            if self.chain.writable_len() == 0 {
                return Err(QueueError::ShortChain { head });
            }
            let waiting = self.state.input.make_contiguous();
            let len = waiting.len().min(self.chain.writable_len() as usize);
            self.chain.scatter(mem, 0, &waiting[..len])?;
            self.state.input.drain(..len);
            queue.push_used(mem, head, len as u32)?;
        }
        queue.ask_for_kick_if_empty(mem)?;
        queue.wants_interrupt(mem)
    }

    fn transmit(
        &mut self,
        queue: &mut VirtQueue,
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<bool, QueueError> {
        for _ in 0..queue.pending(mem)? {
            if !queue.pop(mem, &mut self.chain)? {
                break;
            }
            let head = self.chain.head();
            let len = self.chain.readable_len();
            if len > MAX_OUTPUT {
                return Err(QueueError::OversizeChain { head });
            }
            for offset in (0..len).step_by(SCRATCH) {
                let piece = &mut self.scratch[..SCRATCH.min((len - offset) as usize)];
                self.chain.gather(mem, offset, piece)?;
                outputs.console(piece);
            }
            queue.push_used(mem, head, 0)?;
        }
        queue.ask_for_kick(mem)?;
        queue.wants_interrupt(mem)
    }
}
