//! The four kinds of device, as the transport sees them.

use std::hash::Hasher;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_RNG};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::blk::Blk;
use super::console::Console;
use super::net::Net;
use super::queue::{QueueError, VirtQueue};
use super::rng::Rng;
use crate::machine::memory::GuestMemory;
use crate::machine::output::Outputs;

/// A device behind a virtio transport.
#[derive(Debug)]
pub enum VirtioDevice {
    /// A network device.
    Net(Net),
    /// A disk.
    Blk(Blk),
    /// An entropy source.
    Rng(Rng),
    /// A console.
    Console(Console),
}

impl VirtioDevice {
    /// The device type number (virtio 1.3, section 5).
    #[must_use]
    pub fn id(&self) -> u32 {
        match self {
            Self::Net(_) => VIRTIO_ID_NET,
            Self::Blk(_) => VIRTIO_ID_BLOCK,
            Self::Rng(_) => VIRTIO_ID_RNG,
            Self::Console(_) => VIRTIO_ID_CONSOLE,
        }
    }

    /// All feature bits offered.
    #[must_use]
    pub fn features(&self) -> u64 {
        let own = match self {
            Self::Net(_) => Net::features(),
            Self::Blk(blk) => blk.features(),
            Self::Rng(_) | Self::Console(_) => 0,
        };
        own | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// The largest size of each queue.
    pub(super) fn queue_sizes(&self) -> &'static [u16] {
        match self {
            Self::Net(_) => Net::QUEUES,
            Self::Blk(_) => Blk::QUEUES,
            Self::Rng(_) => Rng::QUEUES,
            Self::Console(_) => Console::QUEUES,
        }
    }

    /// Reads `data.len()` bytes of configuration space at `offset`; zeros where there is none.
    pub(super) fn read_config(&self, offset: usize, data: &mut [u8]) {
        match self {
            Self::Net(net) => read_at(&net.config(), offset, data),
            Self::Blk(blk) => read_at(&blk.config(), offset, data),
            Self::Rng(_) | Self::Console(_) => data.fill(0),
        }
    }

    /// The driver is ready, with `features` negotiated.
    pub(super) fn activate(&mut self, features: u64) {
        match self {
            Self::Net(net) => net.activate(features),
            Self::Blk(_) | Self::Rng(_) | Self::Console(_) => {}
        }
    }

    /// The driver reset the device.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Net(net) => net.reset(),
            Self::Blk(blk) => blk.detach(),
            Self::Rng(_) => {}
            Self::Console(console) => console.reset(),
        }
    }

    /// The driver stopped a queue.
    pub(super) fn queue_stopped(&mut self) {
        match self {
            Self::Blk(blk) => blk.detach(),
            Self::Net(_) | Self::Rng(_) | Self::Console(_) => {}
        }
    }

    /// The driver notified `queue`, which is ready. True: interrupt it.
    pub(super) fn notify(
        &mut self,
        queue: usize,
        queues: &mut [VirtQueue],
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<bool, QueueError> {
        match self {
            Self::Net(net) => net.notify(queue, queues, mem, outputs),
            Self::Blk(blk) => blk.notify(&mut queues[queue], mem, outputs),
            Self::Rng(rng) => rng.notify(&mut queues[queue], mem),
            Self::Console(console) => console.notify(queue, queues, mem, outputs),
        }
    }

    pub(super) fn hash_state(&self, h: &mut impl Hasher) {
        h.write_u32(self.id());
        match self {
            Self::Net(net) => net.hash_state(h),
            Self::Blk(blk) => blk.hash_state(h),
            Self::Rng(rng) => rng.hash_state(h),
            Self::Console(console) => console.hash_state(h),
        }
    }
}

fn read_at(space: &[u8], offset: usize, data: &mut [u8]) {
    for (n, byte) in data.iter_mut().enumerate() {
        *byte = offset.checked_add(n).and_then(|at| space.get(at)).copied().unwrap_or(0);
    }
}
