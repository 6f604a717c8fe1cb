//! A split virtqueue whose every step is checked.
//!
//! A guest that breaks its queue must be told, on primary and backup alike: where the `virtio-queue` crate ends a chain
//! early at a bad index, a loop or a nested indirect table, hands out buffers that lie outside memory, or keeps the old
//! address when it is given a misaligned one, there is a `QueueError` here. The tests hold the two against each other.
//!
//! Devices run while the vCPU is stopped, so that reading a ring twice gives the same answer twice.

mod ring;
mod walk;

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::VolatileSlice;

pub use self::ring::Rings;
use self::ring::{AvailableRing, DESCRIPTOR_SIZE, Table, UsedRing};
use super::chain::Chain;
pub use super::fault::{Part, QueueError};
use crate::machine::memory::{GuestMemory, ram};

/// A virtqueue: what the driver configured, and how far the device has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VirtQueue {
    max_size: u16,
    /// As the driver wrote it; a valid size only once `ready`.
    size: u32,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    ready: bool,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    next_used: u16,
    /// `next_used` when it was last decided whether to interrupt.
    decided_used: u16,
}

impl VirtQueue {
    /// A queue of at most `max_size` entries, a power of two.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            ready: false,
            event_idx: false,
            indirect: false,
            next_avail: 0,
            next_used: 0,
            decided_used: 0,
        }
    }

    /// The most entries the device offers.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether the driver has put the queue into operation.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// The driver chose a size. Checked by [`VirtQueue::enable`]; ignored while the queue is ready.
    pub fn set_size(&mut self, size: u32) {
        if !self.ready {
            self.size = size;
        }
    }

    /// The driver wrote one half of an address. Checked by [`VirtQueue::enable`]; ignored while the queue is ready.
    pub fn set_address(&mut self, part: Part, high_half: bool, value: u32) {
        if self.ready {
            return;
        }
        let address = match part {
            Part::DescriptorTable => &mut self.desc_table,
            Part::AvailableRing => &mut self.avail_ring,
            Part::UsedRing => &mut self.used_ring,
        };
        *address = if high_half {
            *address & 0xffff_ffff | u64::from(value) << 32
        } else {
            *address & !0xffff_ffff | u64::from(value)
        };
    }

    /// The driver put the queue into operation with `features` negotiated.
    ///
    /// # Errors
    /// What is wrong with its size or place; it is not ready then.
    pub fn enable(&mut self, mem: &GuestMemory, features: u64) -> Result<(), QueueError> {
        if self.ready {
            return Ok(());
        }
        let Some(size) = u16::try_from(self.size).ok().filter(|s| s.is_power_of_two() && *s <= self.max_size)
        else {
            return Err(QueueError::Size(self.size));
        };
        for (part, address, align, len) in [
            (Part::DescriptorTable, self.desc_table, 16, DESCRIPTOR_SIZE * u64::from(size)),
            (Part::AvailableRing, self.avail_ring, 2, AvailableRing::bytes(size)),
            (Part::UsedRing, self.used_ring, 4, UsedRing::bytes(size)),
        ] {
            if address == 0 || !address.is_multiple_of(align) {
                return Err(QueueError::Misaligned { part, address });
            }
            if ram(mem, address, len).is_none() {
                return Err(QueueError::RingOutsideRam { part, address });
            }
        }
        self.event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.indirect = features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0;
        self.next_avail = 0;
        self.next_used = 0;
        self.decided_used = 0;
        self.ready = true;
        Ok(())
    }

    /// The driver took the queue out of operation.
    pub fn disable(&mut self) {
        self.ready = false;
    }

    /// How many chains the driver has made available that the device has not taken.
    ///
    /// # Errors
    /// [`QueueError::AvailableIndex`] if it claims more than the queue holds.
    pub fn pending(&self, mem: &GuestMemory) -> Result<u16, QueueError> {
        if !self.ready {
            return Ok(0);
        }
        self.pending_in(&self.available(mem)?)
    }

    fn pending_in(&self, available: &AvailableRing<'_>) -> Result<u16, QueueError> {
        let index = available.index()?;
        let pending = index.wrapping_sub(self.next_avail);
        if u32::from(pending) > self.size {
            return Err(QueueError::AvailableIndex { index, next: self.next_avail });
        }
        Ok(pending)
    }

    /// The queue's parts, for as much as is done with them in one go.
    ///
    /// # Errors
    /// None on a ready queue.
    pub fn rings<'a>(&self, mem: &'a GuestMemory) -> Result<Rings<'a>, QueueError> {
        Ok(Rings { mem, table: self.table(mem)?, available: self.available(mem)?, used: self.used(mem)? })
    }

    /// Takes the next chain into `chain`; false if there is none.
    ///
    /// # Errors
    /// What is wrong with the ring or the chain.
    pub fn pop(&mut self, mem: &GuestMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        if !self.ready {
            return Ok(false);
        }
        let rings = self.rings(mem)?;
        if self.pending_in(&rings.available)? == 0 {
            return Ok(false);
        }
        self.take(&rings, chain).map(|_| true)
    }

    /// Takes the next chain into `chain`: one of those that [`VirtQueue::pending`] has counted. Where its only buffer is, if it
    /// has but one.
    ///
    /// # Errors
    /// As of [`VirtQueue::pop`].
    pub fn take<'a>(
        &mut self,
        rings: &Rings<'a>,
        chain: &mut Chain,
    ) -> Result<Option<VolatileSlice<'a>>, QueueError> {
        let head = rings.available.head(self.next_avail)?;
        chain.start(head);
        let mut last = None;
        self.walk(rings, head, |segment, writable, place| {
            last = Some(place);
            chain.append(segment, writable);
        })?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(last.filter(|_| chain.segments() == 1))
    }

    /// Puts the chain that was taken last back: the next [`VirtQueue::pop`] takes it again.
    pub fn undo_pop(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    /// How many of a ready queue's pending chains together have at least `len` writable bytes, counted from the next one on
    /// and at most `max_chains`; `None` if they have less.
    ///
    /// # Errors
    /// What is wrong with the ring or a chain.
    pub fn chains_for(
        &self,
        rings: &Rings<'_>,
        len: usize,
        max_chains: u16,
    ) -> Result<Option<u16>, QueueError> {
        let mut room = 0;
        for n in 0..self.pending_in(&rings.available)?.min(max_chains) {
            let head = rings.available.head(self.next_avail.wrapping_add(n))?;
            let before = room;
            self.walk(rings, head, |segment, writable, _| {
                room += if writable { segment.len as usize } else { 0 }
            })?;
            if room == before {
                return Err(QueueError::ShortChain { head });
            }
            if room >= len {
                return Ok(Some(n + 1));
            }
        }
        Ok(None)
    }

    /// Gives the chain at `head` back to the driver, with `len` bytes written from its first writable byte on.
    ///
    /// # Errors
    /// [`QueueError::DescriptorIndex`] if `head` is beyond the table (a queue made anew under a request).
    pub fn push_used(&mut self, mem: &GuestMemory, head: u16, len: u32) -> Result<(), QueueError> {
        let rings = self.rings(mem)?;
        self.put_used(&rings, head, len)?;
        self.show_used(&rings)
    }

    /// As [`VirtQueue::push_used`], for the driver to see at [`VirtQueue::show_used`].
    ///
    /// # Errors
    /// Likewise.
    pub fn put_used(&mut self, rings: &Rings<'_>, head: u16, len: u32) -> Result<(), QueueError> {
        if u32::from(head) >= self.size {
            return Err(QueueError::DescriptorIndex { index: head, table_len: self.size });
        }
        rings.used.put(self.next_used, head, len)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was given back.
    ///
    /// # Errors
    /// None on a ready queue.
    pub fn show_used(&self, rings: &Rings<'_>) -> Result<(), QueueError> {
        rings.used.set_index(self.next_used)
    }

    /// Whether the driver wants an interrupt for what was given back since the last call (section 2.7.7).
    ///
    /// # Errors
    /// None on a ready queue.
    pub fn wants_interrupt(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        let added = self.next_used.wrapping_sub(self.decided_used);
        self.decided_used = self.next_used;
        if added == 0 {
            return Ok(false);
        }
        if self.event_idx {
            let event = self.available(mem)?.used_event()?;
            Ok(self.next_used.wrapping_sub(event).wrapping_sub(1) < added)
        } else {
            let flags = self.available(mem)?.flags()?;
            Ok(flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
        }
    }

    /// Asks the driver to notify when it makes the next chain available.
    ///
    /// # Errors
    /// None on a ready queue.
    pub fn ask_for_kick(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        let used = self.used(mem)?;
        if self.event_idx { used.set_available_event(self.next_avail) } else { used.set_flags(0) }
    }

    /// Asks the driver not to notify: the device looks at the queue by itself.
    ///
    /// # Errors
    /// When the rings lie outside memory.
    pub fn ask_for_no_kick(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        if self.event_idx {
            // The index that it was asked for last lies behind it.
            return Ok(());
        }
        self.used(mem)?.set_flags(VRING_USED_F_NO_NOTIFY as u16)
    }

    /// For a queue of empty buffers that wait for input: asks to be notified only when none is left, since
    /// each notification costs the guest an exit.
    ///
    /// # Errors
    /// See [`VirtQueue::pending`].
    pub fn ask_for_kick_if_empty(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        if self.pending(mem)? == 0 { self.ask_for_kick(mem) } else { self.ask_for_no_kick(mem) }
    }

    fn table<'a>(&self, mem: &'a GuestMemory) -> Result<Table<'a>, QueueError> {
        Table::at(mem, self.desc_table, self.size).ok_or(QueueError::Inaccessible)
    }

    fn available<'a>(&self, mem: &'a GuestMemory) -> Result<AvailableRing<'a>, QueueError> {
        AvailableRing::at(mem, self.avail_ring, self.entries()?).ok_or(QueueError::Inaccessible)
    }

    fn used<'a>(&self, mem: &'a GuestMemory) -> Result<UsedRing<'a>, QueueError> {
        UsedRing::at(mem, self.used_ring, self.entries()?).ok_or(QueueError::Inaccessible)
    }

    /// A valid size, once the queue is ready.
    fn entries(&self) -> Result<u16, QueueError> {
        u16::try_from(self.size).ok().filter(|size| size.is_power_of_two()).ok_or(QueueError::Size(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::Segment;
    use super::*;
    use proptest::prelude::*;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{Queue, QueueOwnedT};
    use vm_memory::{Bytes, GuestAddress};

    const SIZE: u16 = 8;
    const RAM: usize = 0x1_0000;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
    }

    /// A queue where the crate's mock driver put it.
    fn queue_of(mem: &GuestMemory, mock: &MockSplitQueue<'_, GuestMemory>, features: u64) -> VirtQueue {
        let mut queue = VirtQueue::new(256);
        queue.set_size(u32::from(SIZE));
        queue.set_address(Part::DescriptorTable, false, mock.desc_table_addr().0 as u32);
        queue.set_address(Part::AvailableRing, false, mock.avail_addr().0 as u32);
        queue.set_address(Part::UsedRing, false, mock.used_addr().0 as u32);
        queue.enable(mem, features).unwrap();
        queue
    }

    fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
        let address = prop_oneof![4 => 0x2000u64..0xf000, 1 => any::<u64>()];
        let len = prop_oneof![6 => 1u32..0x800, 2 => (1u32..5).prop_map(|n| n * 16), 1 => any::<u32>()];
        let flags = prop_oneof![Just(0u16), Just(1), Just(1), Just(2), Just(3), Just(4)];
        proptest::collection::vec((address, len, flags, 0..SIZE + 1), usize::from(SIZE))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        /// The crate is the oracle: a chain that is accepted here has the buffers the crate sees, and a chain that
        /// is refused is one that the crate cuts short or that has a buffer no device may touch.
        #[test]
        fn accepted_chains_are_those_the_crate_sees_whole(
            table in descriptors(),
            indirect in descriptors(),
            head in 0..SIZE + 1,
        ) {
            let mem = memory();
            let mock = MockSplitQueue::create(&mem, GuestAddress(0x1000), SIZE);
            for (n, &(address, len, flags, next)) in table.iter().enumerate() {
                let (address, len) = if flags == 4 { (0x2000, (len % 8 + 1) * 16) } else { (address, len) };
                mock.desc_table().store(n as u16, Descriptor::new(address, len, flags, next).into()).unwrap();
            }
            for (n, &(address, len, flags, next)) in indirect.iter().enumerate() {
                let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
                mem.write_obj(raw, GuestAddress(0x2000 + n as u64 * 16)).unwrap();
            }
            mock.avail().ring().ref_at(0).unwrap().store(head);
            mock.avail().idx().store(1);

            let mut theirs = Vec::new();
            let mut ring: Queue = mock.create_queue().unwrap();
            let seen = ring.iter(&mem).unwrap().next().unwrap();
            let mut ended = false;
            for descriptor in seen {
                ended = !descriptor.has_next();
                theirs.push((
                    Segment { address: descriptor.addr().0, len: descriptor.len() },
                    descriptor.is_write_only(),
                ));
            }

            let mut queue = queue_of(&mem, &mock, 1 << VIRTIO_RING_F_INDIRECT_DESC);
            let mut chain = Chain::with_room_for(SIZE);
            match queue.pop(&mem, &mut chain) {
                Ok(taken) => {
                    prop_assert!(taken && ended);
                    let ours: Vec<_> = chain
                        .readable().iter().map(|&segment| (segment, false))
                        .chain(chain.writable().iter().map(|&segment| (segment, true)))
                        .collect();
                    prop_assert_eq!(chain.head(), head);
                    prop_assert_eq!(ours, theirs);
                    prop_assert_eq!(queue.pop(&mem, &mut chain), Ok(false));
                    queue.undo_pop();
                    prop_assert_eq!(queue.pop(&mem, &mut chain), Ok(true));
                }
                Err(fault) => {
                    let cut = !ended;
                    let untouchable = theirs.iter().any(|(segment, _)| {
                        segment.len == 0 || ram(&mem, segment.address, u64::from(segment.len)).is_none()
                    });
                    let disordered = theirs.windows(2).any(|pair| pair[0].1 && !pair[1].1);
                    // The crate lets a table have a successor, and a chain through a table have the table's length.
                    let lenient = matches!(
                        fault,
                        QueueError::IndirectNotAllowed { .. } | QueueError::ChainTooLong { .. }
                    );
                    prop_assert!(cut || untouchable || disordered || lenient, "{:?} {:?}", fault, theirs);
                }
            }
        }

        /// The interrupt decision is the one of the specification's `vring_need_event`, at any point of the wrap.
        #[test]
        fn the_event_index_decides(start in any::<u16>(), added in 0u16..=SIZE, event in any::<u16>()) {
            let mem = memory();
            let mock = MockSplitQueue::create(&mem, GuestAddress(0x1000), SIZE);
            let mut queue = queue_of(&mem, &mock, 1 << VIRTIO_RING_F_EVENT_IDX);
            queue.next_used = start;
            queue.decided_used = start;
            for _ in 0..added {
                queue.push_used(&mem, 0, 0).unwrap();
            }
            mem.write_obj(event, GuestAddress(queue.avail_ring + 4 + 2 * u64::from(SIZE))).unwrap();
            let crossed = (0..added).any(|n| start.wrapping_add(n) == event);
            prop_assert_eq!(queue.wants_interrupt(&mem).unwrap(), crossed);
            prop_assert!(!queue.wants_interrupt(&mem).unwrap());
        }
    }
}
