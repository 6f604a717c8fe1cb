//! What every transport between two hosts must do: run by the tests of each over its own kind of link.

use std::time::{Duration, Instant};

use super::{Duplex, ReceiveHalf, SendHalf, TransportError, Wake};

pub(super) fn commit(half: &mut impl SendHalf, bytes: &[u8]) {
    half.room()[..bytes.len()].copy_from_slice(bytes);
    half.commit(bytes.len());
}

pub(super) fn receive(half: &mut impl ReceiveHalf, len: usize) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while half.data().len() < len {
        assert!(Instant::now() < deadline, "only {} of {len} bytes came", half.data().len());
        half.wait(Some(Duration::from_millis(100))).unwrap();
    }
    let bytes = half.data()[..len].to_vec();
    half.consume(len);
    bytes
}

pub(super) fn bytes_cross_both_ways<S: SendHalf, R: ReceiveHalf, D: Duplex>(
    (mut send, mut acks, mut log): (S, R, D),
) {
    for round in 0..100_u8 {
        commit(&mut send, &[round; 64]);
        send.flush().unwrap();
        assert_eq!(receive(&mut log, 64), [round; 64]);
        assert!(log.reply(&[round; 96]).unwrap());
        if round % 2 == 0 {
            log.push().unwrap();
        } else {
            assert_eq!(log.wait(Some(Duration::from_millis(1))).unwrap(), Wake::default());
        }
        assert_eq!(receive(&mut acks, 96), [round; 96]);
    }
}

pub(super) fn pushes_in_a_row_each_send_and_lose_no_news<S: SendHalf, R: ReceiveHalf, D: Duplex>(
    (mut send, mut acks, mut log): (S, R, D),
) {
    commit(&mut send, b"news");
    send.flush().unwrap();
    for round in 0..10 {
        assert!(log.reply(&[round; 10]).unwrap());
        log.push().unwrap();
        assert_eq!(receive(&mut acks, 10), [round; 10]);
    }
    assert!(log.wait(Some(Duration::ZERO)).unwrap().data, "came in during a push");
    assert_eq!(log.data(), b"news");
}

pub(super) fn a_wake_or_a_timeout_ends_the_wait<S: SendHalf, R: ReceiveHalf, D: Duplex>(
    (_send, _acks, mut log): (S, R, D),
) {
    let start = Instant::now();
    assert_eq!(log.wait(Some(Duration::from_millis(20))).unwrap(), Wake::default());
    assert!(start.elapsed() >= Duration::from_millis(19));
    let waker = log.waker();
    waker.wake();
    assert!(log.wait(None).unwrap().woken, "a wake before the wait counts");
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        waker.wake();
    });
    assert!(log.wait(None).unwrap().woken);
    thread.join().unwrap();
}

/// More than the socket takes at once: flush does not wait, the kernel sends the rest by itself, the
/// bytes arrive in order, and the wrap of the buffer is crossed.
pub(super) fn a_stalled_peer_gets_everything_in_order_later<
    S: SendHalf,
    R: ReceiveHalf,
    D: Duplex + 'static,
>(
    (mut send, _acks, mut log): (S, R, D),
) {
    let capacity = send.capacity();
    let total = 3 * capacity;
    let (full, wait_for_full) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        wait_for_full.recv_timeout(Duration::from_secs(60)).unwrap();
        let mut expected = 0_u32;
        let mut left = total;
        while left > 0 {
            let chunk = receive(&mut log, 4096);
            for word in chunk.as_chunks::<4>().0 {
                assert_eq!(u32::from_le_bytes(*word), expected);
                expected += 1;
            }
            left -= chunk.len();
        }
        assert!(matches!(log.wait(None), Err(TransportError::Closed)));
    });
    let (mut word, mut sent) = (0_u32, 0);
    while sent < total {
        let room = send.room();
        let len = room.len().min(48 << 10).min(total - sent) / 4096 * 4096;
        for bytes in room[..len].as_chunks_mut::<4>().0 {
            *bytes = word.to_le_bytes();
            word += 1;
        }
        send.commit(len);
        sent += len;
        let start = Instant::now();
        send.flush().unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "flush does not wait");
        if len == 0 {
            let _ = full.send(());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    send.finish(Duration::from_secs(20)).unwrap();
    reader.join().unwrap();
}

/// Replies that nobody reads fill the socket; they are refused, not lost, and go on in order later.
pub(super) fn replies_to_a_peer_that_does_not_read_are_kept_in_order<
    S: SendHalf,
    R: ReceiveHalf + 'static,
    D: Duplex,
>(
    (_send, mut acks, mut log): (S, R, D),
) {
    let (mut next, mut refused) = (0_u32, 0);
    while refused < 100 {
        if log.reply(&[next.to_le_bytes(); 1000].concat()).unwrap() {
            next += 1;
        } else {
            refused += 1;
        }
        log.wait(Some(Duration::ZERO)).unwrap();
    }
    let reader = std::thread::spawn(move || {
        for expected in 0..next {
            assert_eq!(receive(&mut acks, 4000), [expected.to_le_bytes(); 1000].concat());
        }
    });
    while !reader.is_finished() {
        log.wait(Some(Duration::from_millis(1))).unwrap();
    }
    reader.join().unwrap();
}

pub(super) fn a_dead_peer_is_an_error_not_a_signal<S: SendHalf, R: ReceiveHalf, D: Duplex>(
    (mut send, mut acks, log): (S, R, D),
) {
    drop(log);
    assert!(matches!(acks.wait(None), Err(TransportError::Closed | TransportError::Io { .. })));
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        commit(&mut send, &[0; 64]);
        if send.flush().is_err() {
            break;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(send.flush().is_err(), "once broken, always broken");
}

pub(super) fn what_nobody_takes_is_told<S: SendHalf, R: ReceiveHalf, D: Duplex>(
    (mut send, _acks, _log): (S, R, D),
) {
    loop {
        let len = send.room().len().min(1 << 20);
        if len == 0 {
            break;
        }
        send.commit(len);
        send.flush().unwrap();
    }
    let outcome = send.finish(Duration::from_millis(50));
    assert!(matches!(outcome, Err(TransportError::Unsent { unsent: 1.., .. })), "{outcome:?}");
}

pub(super) fn a_watched_descriptor_ends_the_wait_as_long_as_it_is_readable<
    S: SendHalf,
    R: ReceiveHalf,
    D: Duplex,
>(
    (_send, _acks, mut log): (S, R, D),
) {
    let (mut writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
    log.watch(reader.try_clone().unwrap().into()).unwrap();
    assert_eq!(log.wait(Some(Duration::from_millis(5))).unwrap(), Wake::default());
    std::io::Write::write_all(&mut writer, b"x").unwrap();
    for _ in 0..3 {
        assert!(log.wait(Some(Duration::from_secs(5))).unwrap().watched);
    }
    std::io::Read::read_exact(&mut &reader, &mut [0]).unwrap();
    let _armed_while_readable = log.wait(Some(Duration::ZERO)).unwrap();
    assert_eq!(log.wait(Some(Duration::from_millis(5))).unwrap(), Wake::default());
}
