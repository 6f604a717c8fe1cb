use super::*;
use crate::machine::virtio::net::Net;
use crate::machine::virtio::{rng::Rng, slot_address};

#[test]
fn a_notification_puts_out_what_is_queued() {
    let ram = GuestRam::new(2 << 20).unwrap();
    let devices = vec![VirtioDevice::Rng(Rng::new([1; 32])), VirtioDevice::Net(Net::new(0, [2; 6]))];
    let board = Board::new(0, &ram, devices, false, false).unwrap();
    let kicks_off = |exit| board.kicks_off(&exit, ram.memory());
    let write = |address| Exit::MmioWrite { address, size: 4, data: 1 };
    for slot in 0..2 {
        assert!(kicks_off(write(slot_address(slot) + 0x50)), "QueueNotify");
        assert!(!kicks_off(write(slot_address(slot) + 0x64)), "InterruptACK");
    }
    assert!(!kicks_off(write(slot_address(2) + 0x50)), "nobody there");
    assert!(!kicks_off(Exit::Halt));
}

#[test]
fn a_timer_fires_at_its_deadline_however_time_came_there() {
    let ram = GuestRam::new(2 << 20).unwrap();
    let out = &mut crate::machine::output::Dropped;
    // The 8259 with its first line open, a tick of the 8254 in 10 ms.
    let writes = [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)];
    let sums = [1, 7, 50].map(|steps| {
        let mut board = Board::new(0, &ram, Vec::new(), false, false).unwrap();
        for (port, value) in writes {
            assert_eq!(board.port_out(port, &[value], out), None);
        }
        // Its output is high from power-on.
        assert_eq!(board.acknowledge_interrupt(), 0x30);
        assert_eq!(board.port_out(0x20, &[0x20], out), None);
        for _ in 0..3 {
            let (before, deadline) = (board.now().as_nanos(), board.deadline().unwrap().as_nanos());
            for step in 1..=steps {
                assert!(!board.interrupt_pending());
                let then = VirtualTime::from_nanos(before + (deadline - before) * step / steps);
                board.apply(&Input::Time(then), ram.memory(), out).unwrap();
            }
            assert_eq!((board.interrupt_pending(), board.acknowledge_interrupt()), (true, 0x30));
            assert_eq!(board.port_out(0x20, &[0x20], out), None);
        }
        board.sums()
    });
    assert!(sums[0] == sums[1] && sums[0] == sums[2]);
}

#[test]
fn a_clock_that_stands_still_is_set_at_every_exit() {
    let ram = GuestRam::new(2 << 20).unwrap();
    let out = &mut crate::machine::output::Dropped;
    let [mut board, without] =
        [true, false].map(|hpet| Board::new(0, &ram, Vec::new(), false, hpet).unwrap());
    let (read, write) = (
        Exit::MmioRead { address: 0xfed0_00f0, size: 4 },
        Exit::MmioWrite { address: 0xfed0_0010, size: 4, data: 1 },
    );
    assert!(board.reads_clock(&read) && board.reads_clock(&write) && !board.reads_clock(&Exit::Halt));
    assert!(!without.reads_clock(&read), "nobody there");

    board.exited(&write);
    board.mmio_write(0xfed0_0010, &1u32.to_le_bytes(), ram.memory(), out);
    board.apply(&Input::Time(VirtualTime::from_nanos(70)), ram.memory(), out).unwrap();
    board.exited(&read);
    let mut data = [0; 4];
    board.mmio_read(0xfed0_00f0, &mut data, out);
    assert_eq!(data, 7u32.to_le_bytes());
    assert!(board.exposes_tsc(&read) && !board.reads_clock(&Exit::Halt), "it was just started");

    let mut now = 70;
    while board.clock_page().is_none() {
        assert!(now < 1000);
        for exit in [&read, &write] {
            now += 10;
            board.apply(&Input::Time(VirtualTime::from_nanos(now)), ram.memory(), out).unwrap();
            board.exited(exit);
        }
    }
    assert!(board.clock_stands_still() && board.reads_clock(&Exit::Halt) && !board.exposes_tsc(&read));
    let counter = |board: &Board| board.clock_page().unwrap()[2];
    // Ten nanoseconds a count, and one for the first reading.
    assert_eq!(counter(&board), (0xf0, now / 10 + 1));
    board.apply(&Input::Time(VirtualTime::from_nanos(now + 25)), ram.memory(), out).unwrap();
    assert_eq!(counter(&board), (0xf0, now / 10 + 3));
    board.forced_stop();
    assert!(board.clock_page().is_none() && !board.reads_clock(&Exit::Halt));
}
