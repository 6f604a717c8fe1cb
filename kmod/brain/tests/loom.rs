//! Every interleaving of the ring's two ends, and of the table's readers and writer.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p tandem-kmod-brain --release --test loom --target-dir target/loom`

#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use loom::sync::Arc;
use loom::thread;
use tandem_kmod_brain::ring::{Consumer, Entry, Producer, Ring, RingError, Slot};
use tandem_kmod_brain::sync::AtomicU32;
use tandem_kmod_brain::trap::Trap;

struct Shared {
    tail: AtomicU32,
    head: AtomicU32,
    slots: Vec<Slot>,
}

impl Shared {
    fn new(entries: usize) -> Arc<Self> {
        let slots = (0..entries).map(|_| Slot::default()).collect();
        Arc::new(Self { tail: AtomicU32::new(0), head: AtomicU32::new(0), slots })
    }

    fn ring(&self) -> Ring<'_> {
        Ring { tail: &self.tail, head: &self.head, slots: &self.slots }
    }
}

fn entry(n: u64) -> Entry {
    Entry { trap: Trap::Rdtscp, value: n * 1000, ordinal: n }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// Three entries through a ring of two: each comes out once, whole and in order, also over the wrap.
#[test]
fn entries_pass_whole_and_in_order() {
    model(|| {
        let shared = Shared::new(2);
        let writer = shared.clone();
        let thread = thread::spawn(move || {
            let mut producer = Producer::new();
            for n in 0..3 {
                while let Err(error) = producer.push(&writer.ring(), &entry(n)) {
                    assert_eq!(error, RingError::Wait);
                    thread::yield_now();
                }
            }
        });
        let mut consumer = Consumer::new();
        for n in 0..3 {
            loop {
                match consumer.front(&shared.ring()) {
                    Ok(found) => break assert_eq!(found, entry(n)),
                    Err(error) => assert_eq!(error, RingError::Wait),
                }
                thread::yield_now();
            }
            consumer.release(&shared.ring());
        }
        assert_eq!(consumer.front(&shared.ring()), Err(RingError::Wait));
        thread.join().unwrap();
    });
}

/// What the producer believes to be free is free: the room it sees never exceeds what the consumer gave back.
#[test]
fn room_is_never_promised_twice() {
    model(|| {
        let shared = Shared::new(2);
        let mut producer = Producer::new();
        producer.push(&shared.ring(), &entry(0)).unwrap();
        producer.push(&shared.ring(), &entry(1)).unwrap();
        let reader = shared.clone();
        let thread = thread::spawn(move || {
            let mut consumer = Consumer::new();
            assert_eq!(consumer.front(&reader.ring()), Ok(entry(0)));
            consumer.release(&reader.ring());
            assert_eq!(consumer.front(&reader.ring()), Ok(entry(1)));
        });
        let room = producer.room(&shared.ring());
        assert!(room <= 1);
        if room == 1 {
            producer.push(&shared.ring(), &entry(2)).unwrap();
            assert_eq!(producer.push(&shared.ring(), &entry(3)), Err(RingError::Wait));
        }
        thread.join().unwrap();
    });
}
