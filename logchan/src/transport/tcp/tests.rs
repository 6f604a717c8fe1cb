//! Over loopback.

use super::*;
use crate::transport::suite::{self, commit, receive};
use crate::transport::{ReceiveHalf, SendHalf, Wake};
use std::net::TcpListener;

fn link(config: &TcpConfig) -> (TcpSend, TcpReceive, TcpDuplex) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = connect(listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let (send, receive) = primary(stream, config).unwrap();
    (send, receive, backup(accepted, config).unwrap())
}

#[test]
fn bytes_cross_both_ways() {
    suite::bytes_cross_both_ways(link(&TcpConfig::default()));
}

#[test]
fn pushes_in_a_row_each_send_and_lose_no_news() {
    suite::pushes_in_a_row_each_send_and_lose_no_news(link(&TcpConfig::default()));
}

#[test]
fn a_wake_or_a_timeout_ends_the_wait() {
    suite::a_wake_or_a_timeout_ends_the_wait(link(&TcpConfig::default()));
}

#[test]
fn a_stalled_peer_gets_everything_in_order_later() {
    for zero_copy_from in [usize::MAX, 32 << 10, 1] {
        suite::a_stalled_peer_gets_everything_in_order_later(link(&TcpConfig {
            zero_copy_from,
            ..TcpConfig::default()
        }));
    }
}

#[test]
fn replies_to_a_peer_that_does_not_read_are_kept_in_order() {
    suite::replies_to_a_peer_that_does_not_read_are_kept_in_order(link(&TcpConfig::default()));
}

#[test]
fn a_dead_peer_is_an_error_not_a_signal() {
    suite::a_dead_peer_is_an_error_not_a_signal(link(&TcpConfig::default()));
}

#[test]
fn what_nobody_takes_is_told() {
    suite::what_nobody_takes_is_told(link(&TcpConfig::default()));
}

#[test]
fn a_watched_descriptor_ends_the_wait_as_long_as_it_is_readable() {
    suite::a_watched_descriptor_ends_the_wait_as_long_as_it_is_readable(link(&TcpConfig::default()));
}

/// A stream that stalls, wraps its buffers and ends.
fn carries_every_byte(config: &TcpConfig) {
    suite::bytes_cross_both_ways(link(config));
    suite::pushes_in_a_row_each_send_and_lose_no_news(link(config));
    suite::a_wake_or_a_timeout_ends_the_wait(link(config));
    suite::a_stalled_peer_gets_everything_in_order_later(link(config));
    suite::replies_to_a_peer_that_does_not_read_are_kept_in_order(link(config));
    suite::a_dead_peer_is_an_error_not_a_signal(link(config));
    suite::a_watched_descriptor_ends_the_wait_as_long_as_it_is_readable(link(config));
}

#[test]
fn into_registered_memory() {
    carries_every_byte(&TcpConfig { receive: Receive::Registered, ..TcpConfig::default() });
}

#[test]
fn into_provided_buffers() {
    carries_every_byte(&TcpConfig { receive: Receive::Multishot, ..TcpConfig::default() });
}

/// A multishot ends when its window is used up: what comes next must not find a receiver that turns, or sleeps,
/// without a receive.
#[test]
fn a_window_used_up_is_no_end_of_the_wait() {
    for (round, spin) in (0..40_u8).zip([Duration::ZERO, Duration::from_millis(20)].into_iter().cycle()) {
        let (mut send, _acks, mut log) =
            link(&TcpConfig { receive: Receive::Multishot, spin, ..TcpConfig::default() });
        let chunk = [round; 64 << 10];
        for _ in 0..receive::WINDOW / chunk.len() {
            commit(&mut send, &chunk);
            send.flush().unwrap();
            assert_eq!(receive(&mut log, chunk.len()), chunk);
        }
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            commit(&mut send, &[round; 64]);
            send.flush().unwrap();
            send
        });
        let wake = log.wait(Some(Duration::from_secs(10))).unwrap();
        assert!(wake.data, "round {round}, looking for {spin:?}");
        assert_eq!(log.data(), [round; 64]);
        sender.join().unwrap();
    }
}

#[test]
fn out_of_registered_memory() {
    carries_every_byte(&TcpConfig { registered: true, zero_copy_from: 1, ..TcpConfig::default() });
}

#[test]
fn with_the_cards_queue_polled() {
    carries_every_byte(&TcpConfig { busy_poll: Duration::from_micros(20), ..TcpConfig::default() });
}

#[test]
fn what_is_only_offered_goes_out_too() {
    let (mut send, _acks, mut log) = link(&TcpConfig::default());
    commit(&mut send, &[1; 64]);
    send.offer().unwrap();
    assert_eq!(receive(&mut log, 64), [1; 64]);
    // Until the socket is full; the rest goes with the flush.
    let mut sent = 0_usize;
    while send.queued() == 0 {
        commit(&mut send, &[2; 64 << 10]);
        send.offer().unwrap();
        sent += 64 << 10;
    }
    commit(&mut send, &[3; 64]);
    send.offer().unwrap();
    send.flush().unwrap();
    while sent > 0 {
        let len = sent.min(4096);
        assert!(receive(&mut log, len).iter().all(|byte| *byte == 2));
        sent -= len;
    }
    assert_eq!(receive(&mut log, 64), [3; 64]);
}

#[test]
fn small_sends_end_on_the_spot() {
    let (mut send, _acks, _log) = link(&TcpConfig::default());
    commit(&mut send, &[1; 64]);
    send.flush().unwrap();
    assert_eq!(send.queued(), 0);
}

#[test]
fn spinning_receives_too() {
    let config = TcpConfig { spin: Duration::from_millis(2), ..TcpConfig::default() };
    let (mut send, _acks, mut log) = link(&config);
    commit(&mut send, b"spin");
    send.flush().unwrap();
    assert_eq!(receive(&mut log, 4), b"spin");
    assert_eq!(log.wait(Some(Duration::from_millis(5))).unwrap(), Wake::default());
}

#[test]
fn a_receiver_stays_on_its_thread() {
    let (_send, _acks, mut log) = link(&TcpConfig::default());
    let mut log = std::thread::spawn(move || {
        log.wait(Some(Duration::ZERO)).unwrap();
        log
    })
    .join()
    .unwrap();
    assert!(matches!(log.wait(Some(Duration::ZERO)), Err(TransportError::WrongThread)));
}
