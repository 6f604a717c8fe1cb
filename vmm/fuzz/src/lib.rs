//! A backup without KVM: reads batches as [`Follower`] does, and applies each input to a board. The guest
//! itself is left out; it is taken to reach every point that the log names.
//!
//! [`Follower`]: tandem_vmm::replay::follower::Follower

use rkyv::rancor::Error;
use tandem_vmm::host::guest::BootFacts;
use tandem_vmm::machine::board::Board;
use tandem_vmm::machine::memory::GuestRam;
use tandem_vmm::machine::output::Dropped;
use tandem_vmm::machine::time::VirtualTime;
use tandem_vmm::machine::virtio::VirtioDevice;
use tandem_vmm::machine::virtio::blk::Blk;
use tandem_vmm::machine::virtio::console::Console;
use tandem_vmm::machine::virtio::net::Net;
use tandem_vmm::machine::virtio::rng::Rng;
use tandem_vmm::replay::batch::ArchivedBatch;
use tandem_vmm::replay::captured::Captured;
use tandem_vmm::replay::player::{Event, Player};
use tandem_vmm::replay::shipped::Shipped;
use tandem_vmm::replay::stop::{StopCounts, StopImage};

/// Bytes of its guest's memory.
const RAM: u64 = 2 << 20;

/// What follows a log here.
pub struct Backup {
    ram: GuestRam,
    board: Board,
    player: Player,
    captured: Captured,
    point: u64,
    shipped: Shipped,
    stops: StopCounts,
}

impl Backup {
    /// One that starts with `facts`, at the first point.
    pub fn new(facts: &BootFacts) -> Self {
        let ram = GuestRam::new(RAM).expect("memory");
        let devices = vec![
            VirtioDevice::Net(Net::new(0, [2; 6])),
            VirtioDevice::Blk(Blk::new(0, 1 << 10, false, [b'd'; 20])),
            VirtioDevice::Rng(Rng::new(facts.seed)),
            VirtioDevice::Console(Console::new()),
        ];
        let board = Board::new(facts.wall_clock, &ram, devices, false, true).expect("four slots");
        let (player, captured) = (Player::new(0, VirtualTime::ZERO), Captured::new(0));
        Self {
            ram,
            board,
            player,
            captured,
            point: 0,
            shipped: Shipped::default(),
            stops: StopCounts::default(),
        }
    }

    /// Reads a batch and applies what is in it. `None`: it was refused.
    pub fn batch(&mut self, payload: &[u8]) -> Option<()> {
        let batch = rkyv::access::<ArchivedBatch, Error>(payload).ok()?;
        self.player.begin(batch).ok()?;
        self.captured.add(&batch.captured).ok()?;
        while let Some((point, event)) = self.player.peek(batch).ok()? {
            assert!(point >= self.point, "a point goes back");
            assert!(point <= self.player.horizon().saturating_add(1), "a point behind the horizon");
            match event {
                Event::Input(input) => {
                    std::hint::black_box(self.board.accepts(&input, self.ram.memory()));
                    self.board.apply(&input, self.ram.memory(), &mut Dropped).ok()?;
                }
                Event::ForcedStop { image, captured: _ } => {
                    let image = StopImage::unpack(image).ok()?;
                    image.load_pages(&self.ram, &mut self.shipped, &mut self.stops).ok()?;
                    std::hint::black_box(image.vcpu.general().is_ok());
                }
            }
            self.point = point;
            self.player.take(point, &event);
        }
        std::hint::black_box((
            batch.digest.to_native(),
            self.board.deadline(),
            self.board.interrupt_pending(),
        ));
        Some(())
    }
}
