use super::net::{Net, Unusable};
use super::queue::MAX_SIZE;
use super::{Registers, registers as reg};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;
use smoltcp::phy::{Device as _, RxToken, TxToken};
use smoltcp::time::Instant;
use std::vec;

/// A device as strict as the specification allows: it looks at a queue only when notified, asks for each
/// notification, and interrupts only when asked to.
#[derive(Default)]
struct Model {
    kind: u32,
    features: u64,
    taken: Cell<u64>,
    select: [Cell<u32>; 3],
    status: Cell<u32>,
    queues: RefCell<[ModelQueue; 2]>,
    interrupt: Cell<bool>,
    acknowledged: Cell<u32>,
    notified: Cell<u32>,
    sent: RefCell<Vec<Vec<u8>>>,
    incoming: RefCell<VecDeque<Vec<u8>>>,
}

#[derive(Clone, Copy, Default)]
struct ModelQueue {
    size: u16,
    ready: bool,
    places: [u64; 3],
    avail: u16,
    used: u16,
}

/// Reads or writes the memory the driver gave away, at an address of this process.
fn load<T: Copy>(address: u64) -> T {
    // SAFETY: an address out of the queues that the driver set up, which live to the end of the process.
    unsafe { (address as *const T).read_volatile() }
}

fn store<T: Copy>(address: u64, value: T) {
    // SAFETY: as above.
    unsafe { (address as *mut T).write_volatile(value) }
}

const EVENT_IDX: u64 = 1 << 29;
const ALL: u64 = 1 << 32 | EVENT_IDX | 1 << 5;

impl Model {
    fn new(features: u64) -> Rc<Self> {
        Rc::new(Self { kind: 1, features, ..Self::default() })
    }

    fn event_idx(&self) -> bool {
        self.taken.get() & EVENT_IDX != 0
    }

    /// The next available buffer of a queue: descriptor number, address, length.
    fn next(&self, queue: &mut ModelQueue) -> Option<(u16, u64, u32)> {
        let [descriptors, driver, device] = queue.places;
        if self.event_idx() {
            // From here on: notify me of the next one.
            store(device + 4 + 8 * u64::from(queue.size), queue.avail);
        }
        if load::<u16>(driver + 2) == queue.avail {
            return None;
        }
        let id: u16 = load(driver + 4 + 2 * u64::from(queue.avail % queue.size));
        queue.avail = queue.avail.wrapping_add(1);
        let descriptor = descriptors + 16 * u64::from(id);
        Some((id, load(descriptor), load(descriptor + 8)))
    }

    fn give_back(&self, queue: &mut ModelQueue, id: u16, len: u32) {
        let [_, driver, device] = queue.places;
        let place = device + 4 + 8 * u64::from(queue.used % queue.size);
        store(place, u32::from(id));
        store(place + 4, len);
        let old = queue.used;
        queue.used = old.wrapping_add(1);
        store(device + 2, queue.used);
        let wanted = match self.event_idx() {
            true => load::<u16>(driver + 4 + 2 * u64::from(queue.size)) == old,
            false => load::<u16>(driver) & 1 == 0,
        };
        if wanted {
            self.interrupt.set(true);
        }
    }

    fn receive(&self) {
        let queue = &mut self.queues.borrow_mut()[0];
        let mut incoming = self.incoming.borrow_mut();
        while !incoming.is_empty() {
            let Some((id, address, len)) = self.next(queue) else { break };
            let frame = incoming.pop_front().unwrap_or_default();
            assert!(len as usize >= 12 + frame.len());
            for (index, byte) in [0; 12].iter().chain(&frame).enumerate() {
                store(address + index as u64, *byte);
            }
            self.give_back(queue, id, 12 + frame.len() as u32);
        }
        // It goes on looking for buffers while there is nothing to put in: a spare look asks again.
        if let Some((_, _, _)) = self.next(queue) {
            queue.avail = queue.avail.wrapping_sub(1);
        }
    }

    fn transmit(&self) {
        let queue = &mut self.queues.borrow_mut()[1];
        while let Some((id, address, len)) = self.next(queue) {
            let frame = (12..u64::from(len)).map(|offset| load(address + offset)).collect();
            self.sent.borrow_mut().push(frame);
            self.give_back(queue, id, 0);
        }
    }
}

impl Registers for Rc<Model> {
    fn read(&self, offset: usize) -> u32 {
        match offset {
            reg::MAGIC => reg::MAGIC_VALUE,
            reg::VERSION => reg::VERSION_VALUE,
            reg::DEVICE_ID => self.kind,
            reg::DEVICE_FEATURES => (self.features >> (32 * self.select[0].get())) as u32,
            reg::QUEUE_SIZE_MAX => 1024,
            reg::STATUS => self.status.get(),
            _ => panic!("read at {offset:#x}"),
        }
    }

    fn read_byte(&self, offset: usize) -> u8 {
        [0x52, 0x54, 0, 1, 2, 3][offset - reg::CONFIG]
    }

    fn write(&mut self, offset: usize, value: u32) {
        let number = self.select[2].get() as usize;
        let mut queues = self.queues.borrow_mut();
        match offset {
            reg::DEVICE_FEATURES_SELECT => self.select[0].set(value),
            reg::DRIVER_FEATURES_SELECT => self.select[1].set(value),
            reg::DRIVER_FEATURES => {
                self.taken.set(self.taken.get() | u64::from(value) << (32 * self.select[1].get()));
            }
            reg::QUEUE_SELECT => self.select[2].set(value),
            reg::QUEUE_SIZE => queues[number].size = value as u16,
            reg::QUEUE_READY => queues[number].ready = value == 1,
            reg::STATUS => self.status.set(value),
            reg::INTERRUPT_ACK => self.acknowledged.set(self.acknowledged.get() + value),
            reg::QUEUE_NOTIFY => {
                assert!(queues[value as usize].ready && self.status.get() & reg::DRIVER_OK != 0);
                drop(queues);
                self.notified.set(self.notified.get() + 1);
                if value == 0 { self.receive() } else { self.transmit() }
            }
            0x080..0x0a8 => {
                let (index, high) = ((offset - 0x080) / 16, (offset - 0x080) % 16 / 4);
                queues[number].places[index] |= u64::from(value) << (32 * high);
            }
            _ => panic!("write at {offset:#x}"),
        }
    }
}

fn receive_one(net: &mut Net<Rc<Model>>) -> Option<Vec<u8>> {
    let (received, _) = net.receive(Instant::ZERO)?;
    Some(received.consume(<[u8]>::to_vec))
}

fn send_one(net: &mut Net<Rc<Model>>, frame: &[u8]) -> bool {
    match net.transmit(Instant::ZERO) {
        Some(token) => {
            token.consume(frame.len(), |buffer| buffer.copy_from_slice(frame));
            true
        }
        None => false,
    }
}

#[test]
fn devices_that_will_not_do_are_refused() {
    for (kind, features, reason) in [
        (2, ALL, Unusable::NoNetworkDevice),
        (1, ALL & !(1 << 32), Unusable::FeatureMissing),
        (1, ALL & !(1 << 5), Unusable::FeatureMissing),
    ] {
        let model = Rc::new(Model { kind, features, ..Model::default() });
        assert_eq!(Net::start(model).err(), Some(reason));
    }
}

#[test]
fn the_device_is_set_up() {
    let model = Model::new(ALL | 0xff << 6);
    let net = Net::start(model.clone()).unwrap();
    assert_eq!(net.mac(), [0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!(model.taken.get(), ALL, "nothing it does not know");
    let queues = model.queues.borrow();
    for queue in *queues {
        assert_eq!((queue.size, queue.ready), (MAX_SIZE, true));
        assert!(
            queue.places[0].is_multiple_of(16)
                && queue.places[1].is_multiple_of(2)
                && queue.places[2].is_multiple_of(4)
        );
    }
}

#[test]
fn a_full_queue_waits_for_the_device() {
    let model = Model::new(ALL);
    let mut net = Net::start(model.clone()).unwrap();
    let mut count = 0;
    while send_one(&mut net, &[1; 60]) {
        count += 1;
    }
    assert_eq!(count, usize::from(MAX_SIZE));
    assert!(!net.is_ready());
    net.arm();
    net.flush();
    assert_eq!(model.sent.borrow().len(), count);
    assert!(model.interrupt.get());
    // There is room again: once that is known, there is nothing more to do.
    assert!(net.is_ready() && !net.is_ready());
    assert!(send_one(&mut net, &[2; 60]));
}

#[test]
fn a_frame_that_cannot_be_answered_is_no_reason_to_spin() {
    let model = Model::new(ALL);
    let mut net = Net::start(model.clone()).unwrap();
    while send_one(&mut net, &[1; 60]) {}
    model.incoming.borrow_mut().push_back(vec![5; 60]);
    model.receive();
    // The device has not looked at the full queue yet.
    assert!(!net.is_ready() && receive_one(&mut net).is_none());
    net.arm();
    net.flush();
    assert!(model.interrupt.get() && net.is_ready());
    assert_eq!(receive_one(&mut net).as_deref(), Some(&[5; 60][..]));
}

#[test]
fn one_notification_for_many_frames_and_none_for_none() {
    let model = Model::new(ALL);
    let mut net = Net::start(model.clone()).unwrap();
    let before = model.notified.get();
    (0..100).for_each(|_| assert!(send_one(&mut net, &[3; 60])));
    net.flush();
    net.flush();
    assert_eq!(model.notified.get() - before, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The main loop of the guest against the model: every frame gets through, in order, and when the
    /// guest sleeps there is nothing left to do or an interrupt has been raised.
    #[test]
    fn no_frame_is_lost_and_no_wakeup(
        steps in proptest::collection::vec((0usize..300, 0usize..40, any::<bool>()), 1..10),
        features in prop_oneof![Just(ALL), Just(ALL & !EVENT_IDX)],
    ) {
        let model = Model::new(features);
        let mut net = Net::start(model.clone()).unwrap();
        let (mut arrived, mut taken, mut sent) = (0u32, 0u32, 0u32);
        for (frames, replies, late) in steps {
            let frame = |number: u32| [&number.to_le_bytes()[..], &vec![7; number as usize * 37 % 90]].concat();
            model.incoming.borrow_mut().extend((0..frames).map(|_| { arrived += 1; frame(arrived) }));
            if !late {
                model.receive();
            }
            loop {
                while let Some(got) = receive_one(&mut net) {
                    taken += 1;
                    prop_assert_eq!(got, frame(taken));
                }
                for _ in 0..replies {
                    if send_one(&mut net, &frame(sent + 1)) {
                        sent += 1;
                    }
                }
                net.flush();
                if net.is_ready() {
                    continue;
                }
                model.interrupt.set(false);
                net.arm();
                if net.is_ready() {
                    net.disarm();
                    continue;
                }
                // Asleep. Frames that come now must wake it, and nothing else may.
                prop_assert!(!model.interrupt.get());
                let waiting = !model.incoming.borrow().is_empty();
                model.receive();
                prop_assert_eq!(model.interrupt.get(), waiting);
                net.disarm();
                if !waiting {
                    break;
                }
                net.acknowledge();
            }
            prop_assert_eq!(taken, arrived);
            // Not armed: nothing interrupts.
            model.interrupt.set(false);
            model.incoming.borrow_mut().push_back(frame(arrived + 1));
            arrived += 1;
            model.receive();
            prop_assert!(!model.interrupt.get());
        }
        prop_assert_eq!(model.sent.borrow().len(), sent as usize);
        for (index, frame) in model.sent.borrow().iter().enumerate() {
            prop_assert_eq!(&frame[..4], &(index as u32 + 1).to_le_bytes()[..]);
        }
    }
}
