//! virtio-blk (virtio 1.3, section 5.2): one queue, requests completed in any order.
//!
//! A request leaves as an output and its completion comes back as an input: only then does data reach guest
//! memory. What was written is copied when the guest asks for it and kept until it is done, so that a
//! backup that goes live can issue again all that is in flight.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::chain::{self, Chain, Segment};
use super::queue::{QueueError, VirtQueue};
use crate::machine::input::DiskStatus;
use crate::machine::memory::GuestMemory;
use crate::machine::output::{DiskOp, DiskRequest, Outputs};

/// Entries in the queue.
pub const QUEUE_SIZE: u16 = 256;

/// Bytes in a sector, the unit of the protocol and the block size of the disk.
pub const SECTOR_SIZE: u64 = 512;

/// The most data buffers in a request, as the driver is told.
pub const SEG_MAX: u32 = 62;

/// The most bytes in a data buffer, as the driver is told.
pub const SIZE_MAX: u32 = 16 << 10;

/// The most bytes of data in a request. The guest sees VIRTIO_BLK_S_IOERR on a longer one, which breaks the limits above.
pub const MAX_REQUEST: u32 = 1 << 20;

/// The most bytes of data in flight, read and written. At this bound requests wait in the guest's queue.
pub const MAX_IN_FLIGHT_BYTES: u64 = 8 << 20;

/// The most requests in flight.
pub const MAX_IN_FLIGHT: usize = 256;

/// Bytes of a disk's name.
pub const ID_LEN: usize = 20;

/// Bytes of the header of a request: type, reserved, sector.
const HEADER_LEN: u32 = 16;

/// A completion that does not fit what was asked: the log or the host is wrong, not the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CompletionError {
    /// The device is no disk.
    #[error("disk completion for a device that is no disk")]
    NoDisk,
    /// There is no request of this tag in flight.
    #[error("disk {disk}: completion of request {tag}, which is not in flight")]
    UnknownTag {
        /// The disk.
        disk: u8,
        /// The tag.
        tag: u64,
    },
    /// The data is not what was asked for.
    #[error("disk {disk}: request {tag} completes with {found} bytes of data where {expected} belong")]
    Length {
        /// The disk.
        disk: u8,
        /// The tag.
        tag: u64,
        /// Bytes that belong here.
        expected: u32,
        /// Bytes that came.
        found: usize,
    },
}

/// What a request in flight asks for, with its data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Op {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: Box<[u8]> },
    Flush,
}

impl Op {
    /// Bytes this request holds of what may be in flight.
    fn bytes(&self) -> u64 {
        match self {
            Self::Read { len, .. } => u64::from(*len),
            Self::Write { data, .. } => data.len() as u64,
            Self::Flush => 0,
        }
    }

    fn as_output(&self) -> DiskOp<'_> {
        match *self {
            Self::Read { offset, len } => DiskOp::Read { offset, len },
            Self::Write { offset, ref data } => DiskOp::Write { offset, data },
            Self::Flush => DiskOp::Flush,
        }
    }
}

/// Where the answer to a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reply {
    head: u16,
    /// The buffers for the data read, if any, then the status byte.
    writable: Box<[Segment]>,
    writable_len: u32,
}

/// A request that was sent out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    op: Op,
    /// `None` once the driver has reset the device or stopped its queue: nobody waits for the answer.
    reply: Option<Reply>,
}

/// What changes while the device runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    next_tag: u64,
    in_flight: BTreeMap<u64, InFlight>,
    in_flight_bytes: u64,
}

/// A disk.
#[derive(Debug)]
pub struct Blk {
    disk: u8,
    sectors: u64,
    read_only: bool,
    id: [u8; ID_LEN],

    chain: Chain,

    state: State,
}

/// What to do with a chain just taken.
enum Verdict {
    Send(Op),
    /// Answered on the spot: the status, and the data before it.
    Answer(u32, Option<[u8; ID_LEN]>),
}

impl Blk {
    /// Disk number `disk` (counted from zero) of `sectors` times 512 bytes, named `id` (ASCII, zero-padded).
    #[must_use]
    pub fn new(disk: u8, sectors: u64, read_only: bool, id: [u8; ID_LEN]) -> Self {
        Self {
            disk,
            sectors,
            read_only,
            id,
            chain: Chain::with_room_for(QUEUE_SIZE),
            state: State::default(),
        }
    }

    /// Which disk this is, counted from zero.
    #[must_use]
    pub fn disk(&self) -> u8 {
        self.disk
    }

    /// What changes while the device runs.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// All requests that have been sent out and are not complete, oldest first, with the data of writes. A
    /// backup that goes live issues these again, since it cannot know which of them were done.
    pub fn in_flight(&self) -> impl Iterator<Item = DiskRequest<'_>> {
        self.state.in_flight.iter().map(|(&tag, request)| DiskRequest {
            disk: self.disk,
            tag,
            op: request.op.as_output(),
        })
    }

    pub(super) const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    pub(super) fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | u64::from(self.read_only) << VIRTIO_BLK_F_RO
    }

    /// `struct virtio_blk_config` up to `blk_size`: capacity, size_max, seg_max, geometry, blk_size.
    pub(super) fn config(&self) -> [u8; 24] {
        let mut config = [0; 24];
        config[0..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[8..12].copy_from_slice(&SIZE_MAX.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR_SIZE as u32).to_le_bytes());
        config
    }

    /// The driver reset the device or stopped the queue. What was sent out goes on; its answer goes nowhere.
    pub(super) fn detach(&mut self) {
        for request in self.state.in_flight.values_mut() {
            request.reply = None;
        }
    }

    pub(super) fn hash_state(&self, h: &mut impl Hasher) {
        self.state.hash(h);
    }

    /// Takes requests from the queue, as many as may be in flight. True: interrupt the driver.
    pub(super) fn notify(
        &mut self,
        queue: &mut VirtQueue,
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<bool, QueueError> {
        for _ in 0..queue.pending(mem)? {
            if self.state.in_flight.len() >= MAX_IN_FLIGHT || !queue.pop(mem, &mut self.chain)? {
                break;
            }
            match self.judge(mem)? {
                Verdict::Send(op) => {
                    if self.state.in_flight_bytes + op.bytes() > MAX_IN_FLIGHT_BYTES {
                        queue.undo_pop();
                        break;
                    }
                    self.send(op, outputs);
                }
                Verdict::Answer(status, data) => {
                    let (chain, data) = (&self.chain, data.as_ref().map_or(&[][..], |id| id));
                    let used = write_reply(mem, chain.writable(), chain.writable_len(), data, status)?;
                    queue.push_used(mem, chain.head(), used)?;
                }
            }
        }
        queue.ask_for_kick(mem)?;
        queue.wants_interrupt(mem)
    }

    /// Reads the request in `self.chain`.
    fn judge(&self, mem: &GuestMemory) -> Result<Verdict, QueueError> {
        let chain = &self.chain;
        let head = chain.head();
        let out_len = chain.readable_len().checked_sub(HEADER_LEN).ok_or(QueueError::ShortChain { head })?;
        let in_len = chain.writable_len().checked_sub(1).ok_or(QueueError::ShortChain { head })?;
        let mut kind = [0; 4];
        chain.gather(mem, 0, &mut kind)?;
        let mut sector = [0; 8];
        chain.gather(mem, 8, &mut sector)?;
        let sector = u64::from_le_bytes(sector);
        let io_error = Ok(Verdict::Answer(VIRTIO_BLK_S_IOERR, None));
        match u32::from_le_bytes(kind) {
            VIRTIO_BLK_T_IN => {
                let Some(offset) = self.offset(sector, in_len) else { return io_error };
                Ok(Verdict::Send(Op::Read { offset, len: in_len }))
            }
            VIRTIO_BLK_T_OUT => {
                let Some(offset) = self.offset(sector, out_len).filter(|_| !self.read_only) else {
                    return io_error;
                };
                let mut data = vec![0; out_len as usize].into_boxed_slice();
                chain.gather(mem, HEADER_LEN, &mut data)?;
                Ok(Verdict::Send(Op::Write { offset, data }))
            }
            VIRTIO_BLK_T_FLUSH => Ok(Verdict::Send(Op::Flush)),
            VIRTIO_BLK_T_GET_ID if in_len as usize >= ID_LEN => {
                Ok(Verdict::Answer(VIRTIO_BLK_S_OK, Some(self.id)))
            }
            VIRTIO_BLK_T_GET_ID => io_error,
            _ => Ok(Verdict::Answer(VIRTIO_BLK_S_UNSUPP, None)),
        }
    }

    /// Where on the disk a transfer of `len` bytes at `sector` begins, in bytes, if it is whole sectors of this disk.
    fn offset(&self, sector: u64, len: u32) -> Option<u64> {
        let whole = len > 0 && len <= MAX_REQUEST && u64::from(len).is_multiple_of(SECTOR_SIZE);
        let end = sector.checked_add(u64::from(len) / SECTOR_SIZE)?;
        if whole && end <= self.sectors { sector.checked_mul(SECTOR_SIZE) } else { None }
    }

    fn send(&mut self, op: Op, outputs: &mut dyn Outputs) {
        let tag = self.state.next_tag;
        self.state.next_tag += 1;
        self.state.in_flight_bytes += op.bytes();
        outputs.disk(DiskRequest { disk: self.disk, tag, op: op.as_output() });
        let reply = Reply {
            head: self.chain.head(),
            writable: self.chain.writable().into(),
            writable_len: self.chain.writable_len(),
        };
        self.state.in_flight.insert(tag, InFlight { op, reply: Some(reply) });
    }

    /// Whether a completion fits what is in flight.
    ///
    /// # Errors
    /// In what it does not.
    pub fn check_completion(&self, tag: u64, status: DiskStatus, data: &[u8]) -> Result<(), CompletionError> {
        let disk = self.disk;
        let request = self.state.in_flight.get(&tag).ok_or(CompletionError::UnknownTag { disk, tag })?;
        let expected = match (&request.op, status) {
            (Op::Read { len, .. }, DiskStatus::Ok) => *len,
            _ => 0,
        };
        if data.len() != expected as usize {
            return Err(CompletionError::Length { disk, tag, expected, found: data.len() });
        }
        Ok(())
    }

    /// A request is complete, and [`Blk::check_completion`] found nothing wrong with that: its data reaches guest
    /// memory now, and room is made for requests that waited. True: interrupt the driver.
    pub(super) fn complete(
        &mut self,
        tag: u64,
        status: DiskStatus,
        data: &[u8],
        queue: Option<(&mut VirtQueue, &GuestMemory)>,
        outputs: &mut dyn Outputs,
    ) -> Result<bool, QueueError> {
        let Some(request) = self.state.in_flight.remove(&tag) else { return Ok(false) };
        self.state.in_flight_bytes -= request.op.bytes();
        let Some((queue, mem)) = queue else { return Ok(false) };
        if let Some(reply) = request.reply {
            let status = match status {
                DiskStatus::Ok => VIRTIO_BLK_S_OK,
                DiskStatus::IoError => VIRTIO_BLK_S_IOERR,
            };
            let used = write_reply(mem, &reply.writable, reply.writable_len, data, status)?;
            queue.push_used(mem, reply.head, used)?;
        }
        self.notify(queue, mem, outputs)
    }
}

/// Writes `data` to the front and the status to the last byte of a request's writable buffers. Returns how many bytes
/// from the first on were written.
fn write_reply(
    mem: &GuestMemory,
    writable: &[Segment],
    writable_len: u32,
    data: &[u8],
    status: u32,
) -> Result<u32, QueueError> {
    chain::scatter(mem, writable, 0, data)?;
    let status_at = writable_len - 1;
    chain::scatter(mem, writable, status_at, &[status as u8])?;
    Ok(if data.len() == status_at as usize { writable_len } else { data.len() as u32 })
}
