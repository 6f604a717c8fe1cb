//! From descriptor to descriptor of a chain, each of them checked (virtio 1.3, section 2.7.5).

use virtio_queue::desc::split::Descriptor;
use vm_memory::VolatileSlice;

use super::ring::{DESCRIPTOR_SIZE, Table};
use super::{QueueError, Rings, VirtQueue};
use crate::machine::memory::GuestMemory;
use crate::machine::virtio::chain::{Segment, in_ram};

impl VirtQueue {
    /// Shows `visit` each buffer of the chain at `head`, whether the device may write it, and where it is.
    #[inline]
    pub(super) fn walk<'a>(
        &self,
        rings: &Rings<'a>,
        head: u16,
        mut visit: impl FnMut(Segment, bool, VolatileSlice<'a>),
    ) -> Result<(), QueueError> {
        let first = rings.table.descriptor(head)?;
        if first.has_next() || first.refers_to_indirect_table() {
            return self.walk_on(rings, head, &mut visit);
        }
        // Most packets are one buffer, and fifty of them come at one exit.
        let (segment, place) = buffer(rings.mem, head, &first)?;
        visit(segment, first.is_write_only(), place);
        Ok(())
    }

    /// As [`Self::walk`], whatever there is.
    fn walk_on<'a>(
        &self,
        rings: &Rings<'a>,
        head: u16,
        visit: &mut dyn FnMut(Segment, bool, VolatileSlice<'a>),
    ) -> Result<(), QueueError> {
        let (mem, mut table, mut in_indirect) = (rings.mem, rings.table, false);
        let mut index = head;
        let (mut count, mut total, mut seen_writable) = (0, 0u32, false);
        loop {
            let descriptor = table.descriptor(index)?;
            if descriptor.refers_to_indirect_table() {
                if !self.indirect || in_indirect || descriptor.has_next() {
                    return Err(QueueError::IndirectNotAllowed { head });
                }
                let (address, bytes) = (descriptor.addr().0, descriptor.len());
                if bytes == 0 || !u64::from(bytes).is_multiple_of(DESCRIPTOR_SIZE) {
                    return Err(QueueError::IndirectTable { head });
                }
                table = Table::at(mem, address, bytes / DESCRIPTOR_SIZE as u32)
                    .ok_or(QueueError::IndirectTable { head })?;
                (in_indirect, index) = (true, 0);
                continue;
            }
            count += 1;
            if count > self.size {
                return Err(QueueError::ChainTooLong { head });
            }
            let (segment, place) = buffer(mem, head, &descriptor)?;
            total = total.checked_add(segment.len).ok_or(QueueError::ChainTooLarge { head })?;
            let writable = descriptor.is_write_only();
            if seen_writable && !writable {
                return Err(QueueError::ReadableAfterWritable { head });
            }
            seen_writable = writable;
            visit(segment, writable, place);
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }
}

/// The buffer that a descriptor of the chain at `head` describes, and where it is.
#[inline]
fn buffer<'a>(
    mem: &'a GuestMemory,
    head: u16,
    descriptor: &Descriptor,
) -> Result<(Segment, VolatileSlice<'a>), QueueError> {
    let segment = Segment { address: descriptor.addr().0, len: descriptor.len() };
    if segment.len == 0 {
        return Err(QueueError::ZeroLength { head });
    }
    Ok((segment, in_ram(mem, segment)?))
}
