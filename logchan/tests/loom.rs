//! Every interleaving of the ring, the doorbell and the progress block, for small sizes.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p tandem-logchan --release --test loom`

#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use loom::sync::Arc;
use loom::thread;
use tandem_logchan::doorbell::Doorbell;
use tandem_logchan::progress::{Executed, Progress};
use tandem_logchan::ring::{ReserveError, tiny_ring};

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// Three frames through a ring that holds two: order, contents, the wrap, and no access by two threads
/// to one block (the storage is watched under loom).
#[test]
fn frames_pass_in_order_and_blocks_have_one_owner() {
    model(|| {
        let (mut producer, mut consumer) = tiny_ring(64);
        let writer = thread::spawn(move || {
            for n in 0..3_u8 {
                loop {
                    match producer.try_reserve(5) {
                        Ok(slot) => {
                            slot.fill(n);
                            break assert!(producer.commit(5));
                        }
                        Err(ReserveError::Full) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        for n in 0..3_u8 {
            loop {
                if let Some(frame) = consumer.front() {
                    assert_eq!(frame, [n; 5]);
                    break;
                }
                thread::yield_now();
            }
            let _ = consumer.release();
        }
        assert!(consumer.front().is_none());
        writer.join().unwrap();
        assert!(consumer.is_finished());
    });
}

/// A consumer that sleeps on the doorbell gets every frame: a lost wake-up would be a deadlock, which
/// loom reports.
#[test]
fn no_wake_up_is_lost() {
    model(|| {
        let (mut producer, mut consumer) = tiny_ring(128);
        let bell = Arc::new(Doorbell::new());
        let ringer = bell.clone();
        let writer = thread::spawn(move || {
            for n in 0..2_u8 {
                producer.try_reserve(1).unwrap()[0] = n;
                assert!(producer.commit(1));
                ringer.ring();
            }
        });
        for n in 0..2_u8 {
            loop {
                let seen = bell.look();
                if let Some(frame) = consumer.front() {
                    break assert_eq!(frame, [n]);
                }
                bell.wait(seen, None);
            }
            let _ = consumer.release();
        }
        writer.join().unwrap();
    });
}

/// The same for the end of the log: closing and ringing ends a sleep.
#[test]
fn a_close_wakes_the_sleeper() {
    model(|| {
        let (mut producer, mut consumer) = tiny_ring(64);
        let bell = Arc::new(Doorbell::new());
        let ringer = bell.clone();
        let writer = thread::spawn(move || {
            producer.try_reserve(1).unwrap()[0] = 7;
            assert!(producer.commit(1));
            producer.close();
            ringer.ring();
        });
        let mut frames = 0;
        loop {
            let seen = bell.look();
            if consumer.front().is_some() {
                frames += 1;
                let _ = consumer.release();
                continue;
            }
            if consumer.is_finished() {
                break;
            }
            bell.wait(seen, None);
        }
        assert_eq!(frames, 1, "what was committed before the close is not lost");
        writer.join().unwrap();
    });
}

/// A producer that announces that it starves and then sleeps is woken by the release that makes room.
#[test]
fn a_starving_producer_is_always_woken() {
    model(|| {
        let (mut producer, mut consumer) = tiny_ring(64);
        for _ in 0..2 {
            producer.try_reserve(1).unwrap();
            assert!(producer.commit(1));
        }
        let room = Arc::new(Doorbell::new());
        let waker = room.clone();
        let reader = thread::spawn(move || {
            if consumer.release() {
                waker.ring();
            }
            consumer
        });
        loop {
            let seen = room.look();
            if producer.try_reserve(1).is_ok() {
                break;
            }
            producer.announce_starving();
            if producer.try_reserve(1).is_ok() {
                break;
            }
            room.wait(seen, None);
        }
        assert!(producer.commit(1));
        drop(reader.join().unwrap());
    });
}

/// Two sleepers on one bell (the ack news has several) are both woken.
#[test]
fn one_ring_wakes_all_sleepers() {
    model(|| {
        let bell = Arc::new(Doorbell::new());
        let flag = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let sleepers: Vec<_> = (0..2)
            .map(|_| {
                let (bell, flag) = (bell.clone(), flag.clone());
                thread::spawn(move || {
                    loop {
                        let seen = bell.look();
                        if flag.load(loom::sync::atomic::Ordering::Relaxed) {
                            break;
                        }
                        bell.wait(seen, None);
                    }
                })
            })
            .collect();
        flag.store(true, loom::sync::atomic::Ordering::Relaxed);
        bell.ring();
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
    });
}

/// A reader of the progress block never mixes two points, and never goes back.
#[test]
fn progress_is_read_whole() {
    // Two stores are enough for either copy to be met half written, two loads to see the point go back.
    for (stores, loads) in [(2, 1), (1, 2)] {
        model(move || {
            let progress = Arc::new(Progress::new());
            let writer = progress.clone();
            let thread = thread::spawn(move || {
                for n in 1..=stores {
                    writer.store(Executed { sequence: n, position: n * 10, digest: n * 100 });
                }
            });
            let mut last = 0;
            for _ in 0..loads {
                let Executed { sequence, position, digest } = progress.load();
                assert_eq!((position, digest), (sequence * 10, sequence * 100));
                assert!(sequence >= last);
                last = sequence;
            }
            thread.join().unwrap();
        });
    }
}
