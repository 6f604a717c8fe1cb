//! What was placed in the backup's memory without its help is read later, whatever ended the connection.

use super::*;
use crate::transport::Glance;

fn placing() -> RdmaConfig {
    RdmaConfig { placed: true, ..small(Completion::Events) }
}

/// Waits until so many bytes are placed, on the primary's receiving half alone.
fn wait_for_placed(acks: &mut RdmaReceive, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    while acks.placed().unwrap() < bytes {
        assert!(!acks.wait(Some(Duration::from_millis(500))).unwrap().data, "nobody replied");
        assert!(Instant::now() < deadline, "{:?} of {bytes} bytes placed", acks.placed());
    }
}

fn send_all(send: &mut RdmaSend, messages: u64) -> u64 {
    for n in 0..messages {
        commit(send, &n.to_le_bytes());
        send.flush().unwrap();
    }
    8 * messages
}

/// Reads to the end: all bytes, and how it ended.
fn to_the_end(log: &mut RdmaDuplex) -> (Vec<u8>, TransportError) {
    let mut all = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = log.wait(Some(Duration::from_millis(50)));
        all.extend_from_slice(log.data());
        let len = log.data().len();
        log.consume(len);
        if let Err(error) = outcome {
            return (all, error);
        }
        assert!(Instant::now() < deadline, "no end");
    }
}

fn assert_is_prefix(all: &[u8], least: u64) {
    assert!(all.len() as u64 >= least, "{} of {least} bytes that were placed", all.len());
    for (n, bytes) in all.chunks_exact(8).enumerate() {
        assert_eq!(bytes, (n as u64).to_le_bytes());
    }
}

#[test]
fn placed_needs_nobody_at_the_other_end() {
    let Some(bed) = Bed::find() else { return };
    for completion in WAYS {
        println!("{completion:?}");
        let (mut send, mut acks, mut log) = bed.link(RdmaConfig { completion, ..placing() });
        assert_eq!(acks.placed(), Some(0));
        assert_eq!(log.placed(), None);
        // The other end sleeps: not one call of it until all is placed.
        let sent = send_all(&mut send, 100);
        wait_for_placed(&mut acks, sent);
        assert_eq!(acks.placed(), Some(sent));
        assert_is_prefix(&receive(&mut log, sent as usize), sent);
    }
}

/// A look from another thread sees it too, and what it saw is still news to the next wait.
#[test]
fn a_look_sees_what_is_placed() {
    let Some(bed) = Bed::find() else { return };
    let (mut send, mut acks, mut log) = bed.link(placing());
    let Some(Glance::Placed(look)) = acks.glance() else { panic!("no look") };
    assert_eq!(look.placed_by_now(), 0);
    let sent = send_all(&mut send, 100);
    let deadline = Instant::now() + PATIENCE;
    while look.placed_by_now() < sent {
        assert!(Instant::now() < deadline, "{} of {sent} bytes placed", look.placed_by_now());
    }
    assert_eq!(acks.placed(), Some(0));
    wait_for_placed(&mut acks, sent);
    assert_is_prefix(&receive(&mut log, sent as usize), sent);
    assert!(
        bed.link(small(Completion::Events)).1.glance().is_none(),
        "only where log counts as it is placed"
    );
}

#[test]
fn what_was_placed_is_read_after_the_door_was_shut_and_nothing_is_placed_then() {
    let Some(bed) = Bed::find() else { return };
    let (mut send, mut acks, mut log) = bed.link(placing());
    let sent = send_all(&mut send, 200);
    wait_for_placed(&mut acks, sent);
    assert!(log.shut());
    // Somebody who does not know yet goes on writing.
    commit(&mut send, &200_u64.to_le_bytes());
    let _ = send.flush();
    println!("sending: {}", sending_fails(&mut send));
    let placed = acks.placed().unwrap();
    assert_eq!(placed, sent, "placed behind a shut door");
    let (all, error) = to_the_end(&mut log);
    println!("{} bytes, then: {error}", all.len());
    assert_is_prefix(&all, placed);
}

/// The door is shut at any moment under load: every byte that the primary ever saw placed is read.
#[test]
fn a_door_shut_under_load_loses_nothing_that_was_placed() {
    let Some(bed) = Bed::find() else { return };
    for turn in 0..8 {
        let (mut send, mut acks, mut log) = bed.link(placing());
        let sender = std::thread::spawn(move || {
            for n in 0_u64.. {
                while send.room().len() < 8 {
                    std::thread::yield_now();
                    if send.flush().is_err() {
                        return;
                    }
                }
                commit(&mut send, &n.to_le_bytes());
                if send.flush().is_err() {
                    return;
                }
            }
        });
        let watcher = std::thread::spawn(move || {
            while acks.wait(Some(Duration::from_millis(500))).is_ok() {}
            acks.placed().unwrap()
        });
        // Now and then it reads, as a backup does that lags behind.
        let mut all = Vec::new();
        for _ in 0..turn {
            let _ = log.wait(Some(Duration::from_millis(5))).unwrap();
            all.extend_from_slice(log.data());
            let len = log.data().len();
            log.consume(len);
        }
        std::thread::sleep(Duration::from_millis(20));
        log.shut();
        sender.join().unwrap();
        let placed = watcher.join().unwrap();
        let (rest, error) = to_the_end(&mut log);
        all.extend(rest);
        println!("{placed} bytes placed, {} read, then: {error}", all.len());
        assert_is_prefix(&all, placed);
    }
}
