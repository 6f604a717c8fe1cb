//! Datagrams from anybody, and fields from a peer that has the key.
//!
//! `cargo +nightly fuzz run heartbeat_decode` in `logchan/`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use tandem_logchan::handshake::{PreSharedKey, Side};
use tandem_logchan::heartbeat::{Freshness, Heartbeat, HeartbeatKey};

static KEY: LazyLock<HeartbeatKey> = LazyLock::new(|| HeartbeatKey::new(&PreSharedKey::new([1; 32])));

fuzz_target!(|input: (&[u8], u8, [u64; 6], [u8; 8])| {
    let (datagram, standing, [generation, counter, stamp, echo, received, argument], identity) = input;
    assert!(Heartbeat::decode(datagram, &KEY).is_err(), "a heartbeat without the key");
    let side = Side::Backup;
    let beat =
        Heartbeat { side, standing, identity, generation, counter, stamp, echo, received, argument };
    assert_eq!(Heartbeat::decode(&beat.encode(&KEY), &KEY), Ok(beat));
    let mut freshness = Freshness::default();
    assert!(freshness.admit(&beat));
    assert!(!freshness.admit(&beat));
});
