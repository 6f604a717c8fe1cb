//! A peer that does not keep to the protocol: the connection breaks with a reason, and nothing else does.

use super::*;
use crate::transport::rdma::flow::END;
use rdma_sys as sys;

fn scribble(conn: &Connection, to: u64, key: u32, bytes: &[u8], immediate: Option<u32>) {
    assert!(bytes.len() <= conn.queues.inline());
    let write =
        Write { from: bytes.as_ptr(), len: bytes.len(), local_key: 0, to, remote_key: key, immediate };
    conn.queues.post(&[write]).unwrap();
}

#[test]
fn a_length_that_the_ring_cannot_hold_is_refused() {
    let Some(bed) = Bed::find() else { return };
    let (send, mut acks, mut log) = bed.link(small(Completion::Events));
    let conn = send.connection();
    let remote = conn.remote();
    scribble(conn, remote.ring, remote.ring_key, b"", Some(remote.ring_len as u32 + 1));
    let error = failure(&mut log);
    assert!(matches!(error, TransportError::Nonsense(_)), "{error}");
    println!("the other side: {}", failure(&mut acks));
}

#[test]
fn a_credit_for_what_was_not_sent_is_refused() {
    let Some(bed) = Bed::find() else { return };
    let (mut send, mut acks, log) = bed.link(small(Completion::Events));
    let conn = log.connection();
    let remote = conn.remote();
    let words = Credit { bytes: 1 << 40, messages: 3 }.words();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    scribble(conn, remote.word, remote.word_key, &bytes, None);
    let error = sending_fails(&mut send);
    assert!(matches!(error, TransportError::Nonsense(_)), "{error}");
    println!("receiving: {}", failure(&mut acks));
}

#[test]
fn writes_beside_the_ring_break_the_connection_only() {
    let Some(bed) = Bed::find() else { return };
    let (mut send, mut acks, mut log) = bed.link(small(Completion::Events));
    let conn = send.connection();
    let remote = conn.remote();
    scribble(conn, remote.ring + remote.ring_len, remote.ring_key, &[1; 16], None);
    println!("sending: {}", sending_fails(&mut send));
    println!("receiving: {}", failure(&mut acks));
    println!("the other side: {}", failure(&mut log));
}

#[test]
fn keys_are_void_when_the_connection_is_gone() {
    let Some(bed) = Bed::find() else { return };
    let (old, _old_acks, old_log) = bed.link(small(Completion::Events));
    let (to, key) = (old.connection().remote().ring, old.connection().remote().ring_key);
    drop(old_log);
    let (send, mut acks, _log) = bed.link(small(Completion::Events));
    if (send.connection().remote().ring, send.connection().remote().ring_key) == (to, key) {
        panic!("the new connection has the old one's key");
    }
    scribble(send.connection(), to, key, &[1; 16], None);
    let error = failure(&mut acks);
    println!("{error}");
}

#[test]
fn messages_behind_the_end_are_refused() {
    let Some(bed) = Bed::find() else { return };
    let (send, mut acks, mut log) = bed.link(small(Completion::Events));
    let conn = send.connection();
    scribble(conn, 0, 0, b"", Some(END));
    scribble(conn, 0, 0, b"", Some(0));
    // Both are there before the receiver looks: with the end alone the stream is closed, and nobody looks any more.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let error = failure(&mut log);
    assert!(matches!(error, TransportError::Nonsense(_)), "{error}");
    println!("the other side: {}", failure(&mut acks));
}

/// The peer has to post no receive request that the protocol did not promise: what comes beyond that is not waited
/// for, since a sender that counts on it has lost count.
#[test]
fn more_messages_than_there_are_slots_for_break_the_connection() {
    let Some(bed) = Bed::find() else { return };
    let (mut send, mut acks, mut log) = bed.link(small(Completion::Events));
    for _ in 0..SLOTS + 8 {
        scribble(send.connection(), 0, 0, b"", Some(0));
    }
    println!("sending: {}", sending_fails(&mut send));
    println!("receiving: {}", failure(&mut acks));
    drop((send, acks));
    println!("the other side: {}", failure(&mut log));
}

/// An operation that is no write takes a receive request all the same.
#[test]
fn what_is_no_write_to_the_ring_is_refused() {
    let Some(bed) = Bed::find() else { return };
    let (send, mut acks, mut log) = bed.link(small(Completion::Events));
    // SAFETY: all zeros is a valid value: a message without data.
    let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
    request.opcode = sys::ibv_wr_opcode::IBV_WR_SEND;
    let mut bad = std::ptr::null_mut();
    // SAFETY: a live queue pair, and a request that lives until the call returns.
    let posted =
        unsafe { sys::ibv_post_send(send.connection().queues.pair(), &raw mut request, &raw mut bad) };
    assert_eq!(posted, 0);
    let error = failure(&mut log);
    assert!(matches!(error, TransportError::Nonsense(_)), "{error}");
    println!("the other side: {}", failure(&mut acks));
}

/// Hands are shaken, and then the backup says nothing more, or leaves.
#[test]
fn a_peer_that_stops_while_keys_are_exchanged_is_not_waited_for() {
    let Some(bed) = Bed::find() else { return };
    for stays in [true, false] {
        let listener = bed.listen();
        let address = listener.local_addr().unwrap();
        let there = bed.clone();
        let primary = std::thread::spawn(move || {
            there.enter(Side::Primary);
            let mut stream = tcp::connect(address, PATIENCE).unwrap();
            let mut agreed = shake(&mut stream, Side::Primary);
            let config = RdmaConfig { patience: Duration::from_secs(1), ..small(Completion::Events) };
            let start = Instant::now();
            let outcome = super::super::primary(stream, &mut agreed.keys, &config);
            (outcome.map(|_| ()).unwrap_err(), start.elapsed())
        });
        bed.enter(Side::Backup);
        let mut stream = listener.accept().unwrap().0;
        shake(&mut stream, Side::Backup);
        let stream = stays.then_some(stream);
        let (error, took) = primary.join().unwrap();
        println!("stays: {stays}; after {took:?}: {error}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        drop(stream);
    }
}
