//! What a side sends from.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::conn::{Cause, Connection};
use crate::transport::buffer::SendBuffer;

/// Sends from a buffer of its own.
pub(super) struct Sender {
    pub(super) conn: Arc<Connection>,
    /// Moved to the connection when dropped, which may still write from it.
    pub(super) buffer: ManuallyDrop<SendBuffer>,
    released: u64,
}

impl Sender {
    pub(super) fn new(conn: Arc<Connection>, buffer: SendBuffer) -> Self {
        Self { conn, buffer: ManuallyDrop::new(buffer), released: 0 }
    }

    pub(super) fn settle(&mut self) {
        let released = self.conn.released();
        self.buffer.release_all((released - self.released) as usize);
        self.released = released;
    }

    pub(super) fn queued(&self) -> usize {
        self.buffer.queued() - (self.conn.released() - self.released) as usize
    }

    pub(super) fn flush(&mut self) -> Result<(), Cause> {
        self.settle();
        while let Some((start, len)) = self.buffer.submit() {
            self.conn.queue(start, len);
        }
        self.conn.drive()?;
        self.settle();
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        self.conn.retire(unsafe { ManuallyDrop::take(&mut self.buffer) });
    }
}
