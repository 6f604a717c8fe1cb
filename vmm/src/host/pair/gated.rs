//! Outputs that wait for the log.
//!
//! The vCPU thread puts each output into a ring with the number of the log frame that it waits for; the
//! side thread takes them out, in order, as the gate allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::errors::CreationError;
use tandem_logchan::ring::{self, Consumer, Producer};

use super::delay::{Delays, Leaving};
use super::passage::Left;
use crate::host::io::disk::{self, Disks};
use crate::host::io::terminal::Terminal;
use crate::host::leased::LeaseEnd;
use crate::host::run::open_outputs::report;
use crate::host::tap::Tap;
use crate::machine::output::{DiskOp, DiskRequest, Notice, Packet};
use crate::role::Moment;

/// Bytes before each output's payload in the ring.
const HEADER: usize = 48;

/// Bytes of packets that may wait; beyond that they are lost, as in any network card.
const PACKET_ROOM: usize = 8 << 20;

mod kind {
    pub(super) const PACKET: u8 = 1;
    pub(super) const TERMINAL: u8 = 2;
    pub(super) const READ: u8 = 3;
    pub(super) const WRITE: u8 = 4;
    pub(super) const FLUSH: u8 = 5;
    /// Outputs that have left by themselves: to be counted.
    pub(super) const LEFT: u8 = 6;
}

/// The vCPU thread's end.
#[derive(Debug)]
pub(super) struct GateSender {
    ring: Producer,
    /// Terminal bytes that wait for company.
    typed: Vec<u8>,
    /// When the guest kicked off what is being put out; `None`: it comes of an input.
    kick: Option<Moment>,
    /// Packets lost for want of room.
    lost: u64,
    /// Outputs put into the ring, and those of them that have left.
    put: u64,
    left: Arc<AtomicU64>,
}

/// The side thread's end.
#[derive(Debug)]
pub(super) struct GateReceiver {
    ring: Consumer,
    left: Arc<AtomicU64>,
    /// How often outputs left by themselves since somebody asked.
    passed: u64,
    /// Where the outputs' time goes.
    pub(super) delays: Delays,
}

/// One output, at the front of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held<'a> {
    /// The log frame that it waits for.
    pub(super) sequence: u64,
    /// When it was made.
    made: Moment,
    /// When the guest kicked it off.
    kick: Moment,
    kind: u8,
    device: u8,
    tag: u64,
    offset: u64,
    len: u32,
    data: &'a [u8],
}

impl Held<'_> {
    /// Whether the Output Rule is about it: nobody can tell that a read or a flush was made.
    pub(super) const fn is_output(&self) -> bool {
        !matches!(self.kind, kind::READ | kind::FLUSH)
    }

    /// Its way, when it has its turn at `turn`, in a round of releases that began at `round`.
    pub(super) const fn leaving(&self, round: Moment, turn: Moment) -> Leaving {
        Leaving { sequence: self.sequence, kick: self.kick, made: self.made, round, turn }
    }
}

/// A gate for a machine with so many disks.
///
/// # Errors
/// As [`Delays::new`].
pub(super) fn gate(disks: usize) -> Result<(GateSender, GateReceiver), CreationError> {
    let (producer, consumer) = ring::ring(2 * PACKET_ROOM + disks * disk::ROOM);
    let (left, delays) = (Arc::new(AtomicU64::new(0)), Delays::new()?);
    Ok((
        GateSender {
            ring: producer,
            typed: Vec::with_capacity(4096),
            kick: None,
            lost: 0,
            put: 0,
            left: Arc::clone(&left),
        },
        GateReceiver { ring: consumer, left, passed: 0, delays },
    ))
}

impl GateSender {
    fn put(&mut self, head: (u8, u8, u32), place: (u64, u64), wait: (u64, Moment), data: &[u8]) -> bool {
        self.put_with(head, place, wait, (data.len(), |to: &mut [u8]| to.copy_from_slice(data)))
    }

    /// As [`Self::put`], with so many bytes that are written on the spot.
    fn put_with(
        &mut self,
        head: (u8, u8, u32),
        place: (u64, u64),
        wait: (u64, Moment),
        (bytes, write): (usize, impl FnOnce(&mut [u8])),
    ) -> bool {
        let Ok(slot) = self.ring.try_reserve(HEADER + bytes) else { return false };
        let (kind, device, len) = head;
        slot[0] = kind;
        slot[1] = device;
        slot[4..8].copy_from_slice(&len.to_le_bytes());
        slot[8..16].copy_from_slice(&wait.0.to_le_bytes());
        slot[16..24].copy_from_slice(&wait.1.as_nanos().to_le_bytes());
        slot[24..32].copy_from_slice(&place.0.to_le_bytes());
        slot[32..40].copy_from_slice(&place.1.to_le_bytes());
        slot[40..48].copy_from_slice(&self.kick.unwrap_or(wait.1).as_nanos().to_le_bytes());
        write(&mut slot[HEADER..]);
        self.put += u64::from(kind != kind::LEFT);
        self.ring.commit(HEADER + bytes)
    }

    /// Whether all outputs that were put into the gate have left.
    pub(super) fn is_empty(&self) -> bool {
        self.put == self.left.load(Ordering::Acquire)
    }

    /// Outputs have left by themselves.
    pub(super) fn passed(&mut self, burst: &Left) {
        let made = Moment::from_nanos(burst.turn.as_nanos() - burst.queued);
        let way = (burst.turn.as_nanos(), burst.left.as_nanos());
        // Without room they are not counted.
        let _ = self.put((kind::LEFT, 0, burst.outputs), way, (0, made), &[]);
    }

    /// The guest kicked off the outputs that follow; or they come of an input, and begin when they are made.
    pub(super) const fn kicked(&mut self, kick: Option<Moment>) {
        self.kick = kick;
    }

    /// A packet that waits for log frame `sequence`.
    pub(super) fn packet(&mut self, nic: u8, packet: &Packet<'_>, sequence: u64, made: Moment) {
        let room = self.ring.used() + packet.len() <= PACKET_ROOM;
        let bytes = (packet.len(), |to: &mut [u8]| packet.copy_to(to));
        if !room || !self.put_with((kind::PACKET, nic, 0), (0, 0), (sequence, made), bytes) {
            if self.lost == 0 {
                tracing::warn!("more packets wait for the backup than there is room for; some are lost");
            }
            self.lost += 1;
        }
    }

    /// A disk request that waits for log frame `sequence`.
    pub(super) fn disk(&mut self, request: &DiskRequest<'_>, sequence: u64, made: Moment) {
        let wait = (sequence, made);
        let put = match request.op {
            DiskOp::Read { offset, len } => {
                self.put((kind::READ, request.disk, len), (request.tag, offset), wait, &[])
            }
            DiskOp::Write { offset, data } => {
                let len = data.len() as u32;
                self.put((kind::WRITE, request.disk, len), (request.tag, offset), wait, data)
            }
            DiskOp::Flush => self.put((kind::FLUSH, request.disk, 0), (request.tag, 0), wait, &[]),
        };
        if !put {
            tracing::error!(disk = request.disk, tag = request.tag, "no room for a disk request");
        }
    }

    /// Terminal bytes; they go out with the next [`GateSender::seal`].
    pub(super) fn terminal(&mut self, bytes: &[u8]) {
        if self.typed.len() < 1 << 20 {
            self.typed.extend_from_slice(bytes);
        }
    }

    /// Whether terminal bytes wait for company.
    pub(super) fn has_typed(&self) -> bool {
        !self.typed.is_empty()
    }

    /// Puts the terminal bytes into the queue, to wait for log frame `sequence`.
    pub(super) fn seal(&mut self, sequence: u64, made: Moment) {
        if !self.typed.is_empty() {
            let typed = std::mem::take(&mut self.typed);
            if !self.put((kind::TERMINAL, 0, 0), (0, 0), (sequence, made), &typed) {
                tracing::warn!(bytes = typed.len(), "terminal output was lost");
            }
            self.typed = typed;
            self.typed.clear();
        }
    }
}

impl GateReceiver {
    /// The oldest output that has not left.
    pub(super) fn front(&mut self) -> Option<Held<'_>> {
        while *self.ring.front()?.first()? == kind::LEFT {
            let burst = self.read()?;
            let (made, outputs) = (burst.made, u64::from(burst.len));
            let (turn, took) = (burst.tag, burst.offset.saturating_sub(burst.tag));
            let leaving = burst.leaving(made, Moment::from_nanos(turn));
            // One system call wrote them all: each has an equal part of it.
            let after = |count: u64| Moment::from_nanos(turn + took * count / outputs.max(1));
            for output in 0..outputs {
                self.delays.passed(Leaving { turn: after(output), ..leaving }, after(output + 1));
            }
            self.passed += 1;
            self.drop_front();
        }
        self.read()
    }

    /// How often outputs have left by themselves since the last call, as far as this end has seen it.
    pub(super) const fn passed(&mut self) -> u64 {
        std::mem::replace(&mut self.passed, 0)
    }

    fn read(&mut self) -> Option<Held<'_>> {
        let (header, data) = self.ring.front()?.split_first_chunk::<HEADER>()?;
        let word = |at: usize| header[at..at + 8].iter().rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
        Some(Held {
            kind: header[0],
            device: header[1],
            len: word(0).to_le_bytes()[4..].iter().rev().fold(0u32, |w, b| w << 8 | u32::from(*b)),
            sequence: word(8),
            made: Moment::from_nanos(word(16)),
            kick: Moment::from_nanos(word(40)),
            tag: word(24),
            offset: word(32),
            data,
        })
    }

    /// Drops the oldest output: it has left.
    pub(super) fn take(&mut self) {
        self.left.fetch_add(1, Ordering::Release);
        self.drop_front();
    }

    fn drop_front(&mut self) {
        // The sender never sleeps for room.
        let _ = self.ring.release();
    }
}

/// Where outputs leave the host.
#[derive(Debug)]
pub(super) struct Exits {
    pub(super) taps: Vec<Arc<Tap>>,
    /// None on a backup.
    pub(super) disks: Option<Arc<Disks>>,
    pub(super) terminal: Terminal,
}

impl Exits {
    /// Lets one output out. Tell [`GateReceiver::delays`] when it has left. `false`: the lease ended before it had.
    pub(super) fn send(&mut self, held: &Held<'_>, lease: &LeaseEnd) -> bool {
        let request = |op| DiskRequest { disk: held.device, tag: held.tag, op };
        match held.kind {
            kind::PACKET => {
                let tap = self.taps.get(usize::from(held.device));
                return tap.is_none_or(|tap| tap.write_leased(held.data, lease).is_some());
            }
            kind::TERMINAL => self.terminal.write(held.data),
            kind::READ => self.issue(&request(DiskOp::Read { offset: held.offset, len: held.len })),
            kind::WRITE => self.issue(&request(DiskOp::Write { offset: held.offset, data: held.data })),
            _ => self.issue(&request(DiskOp::Flush)),
        }
        true
    }

    /// Whether all disk requests that were issued are done.
    pub(super) fn disks_are_idle(&self) -> bool {
        self.disks.as_ref().is_none_or(|disks| disks.are_idle())
    }

    /// Issues a disk request.
    fn issue(&self, request: &DiskRequest<'_>) {
        if !self.disks.as_ref().is_some_and(|disks| disks.issue(request)) {
            tracing::error!(disk = request.disk, tag = request.tag, "a disk request could not be issued");
        }
    }
}

/// Tells the operator what the guest did.
pub(super) fn notice(notice: Notice) {
    report(notice);
}
