//! Handshake messages before any key is proved, and the hello that would be inside them.
//!
//! `cargo +nightly fuzz run handshake_decode` in `logchan/`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_logchan::codec::SchemaDigest;
use tandem_logchan::handshake::{Handshake, Hello, Identity, PreSharedKey, Side, decode_hello, envelope};

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (primary, kind, bytes) = input;
    if let Ok(hello) = decode_hello(bytes) {
        std::hint::black_box(format!("{hello:?}"));
    }
    if let Some(head) = bytes.first_chunk() {
        let _ = envelope(head);
    }
    let hello = Hello {
        side: if primary { Side::Primary } else { Side::Backup },
        generation: 1,
        encrypt: false,
        schema: SchemaDigest([0; 16]),
        identity: Identity::builder().build(),
    };
    let Ok((mut handshake, _)) = Handshake::new(hello, &PreSharedKey::new([1; 32])) else { return };
    // Once as it is, once in a proper envelope.
    let mut message = b"TLHS".to_vec();
    message.extend_from_slice(&0x0102_0304_u32.to_ne_bytes());
    message.extend_from_slice(&[1, 0, kind % 5, 0]);
    message.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    message.extend_from_slice(bytes);
    for message in [bytes, &message] {
        if let Err(failed) = handshake.on_message(message) {
            std::hint::black_box(failed.error.to_string());
        }
    }
});
