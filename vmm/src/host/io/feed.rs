//! Packets and typed bytes, from the host to the vCPU thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::host::tap::{LONGEST_PACKET, Tap};
use crate::host::vcpu::inputs::{InputSource, Packet};

/// Packets taken from one tap before the others get their turn.
const BURST: usize = 256;

/// Bytes typed that are taken at once.
const TYPED: usize = 256;

/// Reads the host's descriptors and feeds what comes to the vCPU thread.
#[derive(Debug)]
pub struct Feed {
    taps: Vec<Arc<Tap>>,
    /// Whether standard input is the guest's serial line.
    typed: bool,
    source: InputSource,
    /// Whether the machine runs here. What comes while it does not is dropped: at go-live nothing old
    /// must wait.
    accepting: Arc<AtomicBool>,
}

/// What feeding one descriptor led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// All there was.
    Drained,
    /// There is more, for the next turn.
    More,
    /// The vCPU thread has no room: try again in a moment.
    Full,
}

impl Feed {
    /// A feed from `taps` and, if `typed`, from standard input, for as long as `accepting`.
    #[must_use]
    pub const fn new(
        taps: Vec<Arc<Tap>>,
        typed: bool,
        source: InputSource,
        accepting: Arc<AtomicBool>,
    ) -> Self {
        Self { taps, typed, source, accepting }
    }

    /// The descriptors to wait for, with the token to feed when they are readable.
    pub fn descriptors(&self) -> impl Iterator<Item = (RawFd, usize)> + '_ {
        let taps = self.taps.iter().enumerate().map(|(i, tap)| (tap.as_raw_fd(), i));
        taps.chain(self.typed.then_some((libc::STDIN_FILENO, usize::MAX)))
    }

    /// Feeds what the descriptor of `token` has.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn feed(&mut self, token: usize) -> io::Result<Fed> {
        match self.taps.get(token) {
            Some(tap) => {
                let tap = Arc::clone(tap);
                self.feed_packets(&tap, token as u8)
            }
            None => self.feed_typed(),
        }
    }

    fn feed_packets(&mut self, tap: &Tap, nic: u8) -> io::Result<Fed> {
        if !self.accepting.load(Ordering::Acquire) {
            let mut packet = [0; LONGEST_PACKET];
            while tap.read_packet(&mut packet)?.is_some() {}
            return Ok(Fed::Drained);
        }
        let mut fed = Fed::More;
        let mut any = false;
        let mut fresh = false;
        for _ in 0..BURST {
            match self.source.packet_with(nic, LONGEST_PACKET, |slot| tap.read_packet(slot))? {
                Packet::Sent => {
                    any = true;
                    fresh = true;
                }
                // A guest that computes takes them as they come; one that sleeps is woken once for all that
                // a busy sender has to say. On a core of its own this thread comes back at once.
                Packet::None if fresh => {
                    fresh = false;
                    std::thread::yield_now();
                }
                Packet::None => {
                    fed = Fed::Drained;
                    break;
                }
                Packet::RingFull => {
                    fed = Fed::Full;
                    break;
                }
            }
        }
        if any {
            self.source.ring();
        }
        Ok(fed)
    }

    fn feed_typed(&mut self) -> io::Result<Fed> {
        let mut bytes = [0u8; TYPED];
        // SAFETY: the buffer is valid for its length.
        let read = unsafe { libc::read(libc::STDIN_FILENO, bytes.as_mut_ptr().cast(), TYPED) };
        match usize::try_from(read) {
            Ok(0) => {
                self.typed = false;
                Ok(Fed::Drained)
            }
            Ok(len) => Ok(if self.source.serial(&bytes[..len]) { Fed::Drained } else { Fed::Full }),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}
