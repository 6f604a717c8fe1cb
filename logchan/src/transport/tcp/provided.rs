//! A buffer that the kernel fills by itself, receive after receive, from one operation (multishot).
//!
//! A provided-buffer ring with a single entry, which the kernel uses up bit by bit (IOU_PBUF_RING_INC, Linux 6.12): what
//! comes in lies contiguous, as if it had been received piece by piece into one window.

use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::transport::buffer::Memory;

/// The kernel wants the ring's memory to start at a page.
const PAGE: usize = 4096;
const GROUP: u16 = 0;
/// IOU_PBUF_RING_INC: receives take from a buffer what they need and leave the rest to the next.
const INCREMENTAL: u16 = 2;

/// The ring of one entry.
#[derive(Debug)]
pub(super) struct Provided {
    /// Never freed while the io_uring lives; leaked with it if operations do not end.
    memory: ManuallyDrop<Memory>,
    /// Where in it the ring is.
    start: usize,
    tail: u16,
}

impl Provided {
    /// Registers a ring without buffers.
    ///
    /// # Errors
    /// The kernel is older than 6.12.
    pub(super) fn new(ring: &IoUring) -> io::Result<Self> {
        let memory = Memory::new(2 * PAGE);
        let start = memory.at(0).align_offset(PAGE);
        // SAFETY: a page of memory that outlives the registration: see `forget` and `free`.
        unsafe {
            let at = memory.at(start).addr() as u64;
            ring.submitter().register_buf_ring_with_flags(at, 1, GROUP, INCREMENTAL)?;
        }
        Ok(Self { memory: ManuallyDrop::new(memory), start, tail: 0 })
    }

    /// Gives the kernel `len` bytes at `at` to fill. Not before it has used up the last.
    pub(super) fn offer(&mut self, at: *mut u8, len: usize) {
        let entry = self.memory.at(self.start).cast::<types::BufRingEntry>();
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the ring's only entry, which is the kernel's no more; the tail lies in its unused field.
        unsafe {
            (*entry).set_addr(at.addr() as u64);
            (*entry).set_len(len as u32);
            (*entry).set_bid(0);
            let tail = types::BufRingEntry::tail(entry).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// Receives again and again until the buffer is used up.
    pub(super) fn receive(socket: types::Fixed) -> squeue::Entry {
        opcode::RecvMulti::new(socket, GROUP).build()
    }

    /// Frees the memory.
    ///
    /// # Safety
    /// No operation takes from the ring any more. To be called once, and nothing after it.
    pub(super) unsafe fn free(&mut self) {
        // SAFETY: dropped once, by the caller's word.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}
