//! Inputs on their way to the vCPU thread.
//!
//! Each source (the I/O thread, the disk thread) has a ring of its own; the vCPU thread looks at all of
//! them at each exit, and sleeps on one doorbell when the guest idles. An input lies in its ring as a
//! 16-byte header and the payload, and is applied from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tandem_logchan::doorbell::Doorbell;
use tandem_logchan::ring::{self, Consumer, Producer};

use crate::host::clock::nanos;
use crate::machine::input::{DiskStatus, Input};
use crate::machine::time::VirtualTime;
use crate::replay::recorder::Inputs;
use crate::replay::stop_pace::Spent;

use super::clock::HostClock;
use super::kick::without_kicks;

/// Bytes of the header before each payload.
const HEADER: usize = 16;

/// A longer wait is spared the kicks: to stop and start them takes two system calls, a kick a signal.
const SHORT_WAIT: Duration = Duration::from_millis(1);

mod kind {
    pub(super) const PACKET: u8 = 1;
    pub(super) const DISK: u8 = 2;
    pub(super) const SERIAL: u8 = 3;
    pub(super) const CONSOLE: u8 = 4;
}

/// What wakes the vCPU thread, and what makes it leave its loop.
#[derive(Debug, Default)]
pub struct VcpuBell {
    bell: Doorbell,
    leave: AtomicBool,
}

impl VcpuBell {
    /// Wakes the vCPU thread if it sleeps.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Asks the vCPU thread to leave its loop: at the next exit, or at the next kick.
    pub fn leave(&self) {
        self.leave.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Whether it was asked to leave.
    #[must_use]
    pub fn leaving(&self) -> bool {
        self.leave.load(Ordering::Acquire)
    }

    /// Takes the wish to leave back, before the loop is taken up again.
    pub fn stay(&self) {
        self.leave.store(false, Ordering::Release);
    }
}

/// The sending end of one source.
#[derive(Debug)]
pub struct InputSource {
    ring: Producer,
    bell: Arc<VcpuBell>,
}

impl InputSource {
    fn header(slot: &mut [u8], kind: u8, device: u8, failed: bool, tag: u64) {
        slot[..HEADER].fill(0);
        slot[0] = kind;
        slot[1] = device;
        slot[2] = u8::from(failed);
        slot[8..HEADER].copy_from_slice(&tag.to_le_bytes());
    }

    fn send(&mut self, kind: u8, device: u8, failed: bool, tag: u64, payload: &[u8]) -> bool {
        let Ok(slot) = self.ring.try_reserve(HEADER + payload.len()) else { return false };
        Self::header(slot, kind, device, failed, tag);
        slot[HEADER..].copy_from_slice(payload);
        let sent = self.ring.commit(HEADER + payload.len());
        self.bell.ring();
        sent
    }

    /// Lets `read` put a packet of at most `longest` bytes straight into the ring. It returns the packet's
    /// length, or `None` if there is none. False: the ring is full and `read` was not called.
    ///
    /// # Errors
    /// What `read` came upon.
    pub fn packet_with<E>(
        &mut self,
        nic: u8,
        longest: usize,
        read: impl FnOnce(&mut [u8]) -> Result<Option<usize>, E>,
    ) -> Result<Packet, E> {
        let Ok(slot) = self.ring.try_reserve(HEADER + longest) else { return Ok(Packet::RingFull) };
        let Some(len) = read(&mut slot[HEADER..])? else { return Ok(Packet::None) };
        Self::header(slot, kind::PACKET, nic, false, 0);
        self.ring.commit(HEADER + len.min(longest));
        Ok(Packet::Sent)
    }

    /// Rings the bell after packets were sent.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Sends a disk completion; false if the ring is full.
    pub fn disk_done(&mut self, disk: u8, tag: u64, status: DiskStatus, data: &[u8]) -> bool {
        self.send(kind::DISK, disk, status == DiskStatus::IoError, tag, data)
    }

    /// Sends bytes typed at the serial line; false if the ring is full.
    pub fn serial(&mut self, bytes: &[u8]) -> bool {
        self.send(kind::SERIAL, 0, false, 0, bytes)
    }

    /// Sends bytes typed at the console; false if the ring is full.
    pub fn console(&mut self, bytes: &[u8]) -> bool {
        self.send(kind::CONSOLE, 0, false, 0, bytes)
    }
}

/// What became of reading a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// It is on its way.
    Sent,
    /// There was none.
    None,
    /// The vCPU thread has to catch up first.
    RingFull,
}

/// The receiving end: all sources, and the clock.
#[derive(Debug)]
pub struct HostInputs {
    sources: Vec<Consumer>,
    /// The source of the front input.
    front: usize,
    clock: HostClock,
    bell: Arc<VcpuBell>,
}

/// Makes the receiving end and `N` sources with rings of `bytes` each.
#[must_use]
pub fn inputs<const N: usize>(clock: HostClock, bytes: usize) -> (HostInputs, [InputSource; N]) {
    let bell = Arc::new(VcpuBell::default());
    let mut sources = Vec::new();
    let producers = std::array::from_fn(|_| {
        let (producer, consumer) = ring::ring(bytes);
        sources.push(consumer);
        InputSource { ring: producer, bell: Arc::clone(&bell) }
    });
    (HostInputs { sources, front: 0, clock, bell }, producers)
}

impl HostInputs {
    /// The bell of the thread that takes these inputs.
    #[must_use]
    pub fn bell(&self) -> Arc<VcpuBell> {
        Arc::clone(&self.bell)
    }

    /// The time until then, or `most` if that is less; `None`: it has come.
    fn left(&mut self, until: Option<VirtualTime>, most: Duration) -> Option<Duration> {
        let Some(until) = until else { return Some(most) };
        let now = self.clock.now();
        (until > now).then(|| Duration::from_nanos(until.since(now)).min(most))
    }

    /// Sets the clock: at go-live time goes on from the last logged reading.
    pub fn set_clock(&mut self, clock: HostClock) {
        self.clock = clock;
    }
}

fn decode(bytes: &[u8]) -> Option<Input<'_>> {
    let (header, payload) = bytes.split_at_checked(HEADER)?;
    let tag = u64::from_le_bytes(*header[8..].first_chunk()?);
    Some(match header[0] {
        kind::PACKET => Input::Packet { nic: header[1], packet: payload },
        kind::DISK => {
            let status = if header[2] == 0 { DiskStatus::Ok } else { DiskStatus::IoError };
            Input::DiskDone { disk: header[1], tag, status, data: payload }
        }
        kind::SERIAL => Input::Serial(payload),
        kind::CONSOLE => Input::Console(payload),
        _ => return None,
    })
}

impl Inputs for HostInputs {
    fn now(&mut self) -> VirtualTime {
        self.clock.now()
    }

    fn pending(&mut self) -> bool {
        match self.sources.iter_mut().position(|source| source.front().is_some()) {
            Some(front) => {
                self.front = front;
                true
            }
            None => false,
        }
    }

    fn front(&mut self) -> Option<Input<'_>> {
        if !self.pending() {
            return None;
        }
        self.sources[self.front].front().and_then(decode)
    }

    fn take(&mut self) {
        // Sources do not sleep for want of room: they try again on their own.
        let _ = self.sources[self.front].release();
    }

    fn cpu_time(&mut self) -> u64 {
        nanos(libc::CLOCK_THREAD_CPUTIME_ID)
    }

    fn spent(&mut self) -> Spent {
        // SAFETY: all zeros are a valid `rusage`.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is valid for the call, which cannot fail for this thread.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
        let passed = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
        Spent { all: self.cpu_time(), kernel: passed(usage.ru_stime) }
    }

    fn wait(&mut self, until: Option<VirtualTime>) {
        let seen = self.bell.bell.look();
        if self.pending() || self.bell.leaving() {
            return;
        }
        let Some(short) = self.left(until, SHORT_WAIT) else { return };
        self.bell.bell.wait(seen, Some(short));
        // Nothing came, or a kick has ended it.
        if self.bell.bell.look() == seen
            && let Some(long) = self.left(until, Duration::MAX)
        {
            without_kicks(|| self.bell.bell.wait(seen, Some(long)));
        }
    }

    fn leave(&mut self) -> bool {
        self.bell.leaving()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_arrive_as_sent_source_by_source() {
        let clock = HostClock::continuing(VirtualTime::ZERO);
        let (mut inputs, [mut io, mut disk]) = inputs::<2>(clock, 1 << 16);
        assert!(!inputs.pending());
        assert!(disk.disk_done(3, 1 << 40, DiskStatus::IoError, b""));
        assert!(io.serial(b"hi"));
        let sent = io.packet_with(2, 1514, |slot| {
            slot[..60].fill(7);
            Ok::<_, ()>(Some(60))
        });
        assert_eq!(sent, Ok(Packet::Sent));
        let mut seen = Vec::new();
        while let Some(input) = inputs.front() {
            seen.push(format!("{input:?}"));
            inputs.take();
        }
        let wanted = [
            Input::Serial(b"hi"),
            Input::Packet { nic: 2, packet: &[7; 60] },
            Input::DiskDone { disk: 3, tag: 1 << 40, status: DiskStatus::IoError, data: b"" },
        ];
        assert_eq!(seen, wanted.map(|i| format!("{i:?}")));
    }

    #[test]
    fn a_sleeper_is_woken_by_an_input_by_time_and_by_the_wish_to_leave() {
        let clock = HostClock::continuing(VirtualTime::ZERO);
        let (mut inputs, [mut io]) = inputs::<1>(clock, 1 << 12);
        let until = inputs.now() + 2_000_000;
        while inputs.now() < until {
            inputs.wait(Some(until));
        }
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            assert!(io.console(b"x"));
            io
        });
        while !inputs.pending() {
            inputs.wait(None);
        }
        inputs.take();
        let _io = sender.join().unwrap();
        let bell = inputs.bell();
        let leaver = std::thread::spawn(move || bell.leave());
        while !inputs.leave() {
            inputs.wait(None);
        }
        leaver.join().unwrap();
    }
}
