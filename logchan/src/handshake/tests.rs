//! Both sides against each other, with everything that can differ.

use super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

fn key(byte: u8) -> PreSharedKey {
    PreSharedKey::new([byte; 32])
}

fn hello(side: Side) -> Hello {
    let identity = Identity::builder()
        .part("kernel", "linux 7.3", b"k")
        .part("cmdline", "console=ttyS0", b"console=ttyS0")
        .part("memory", "64 MiB", b"64")
        .build();
    Hello { side, generation: 5, encrypt: true, schema: SchemaDigest::of("s"), identity }
}

type Outcome = Result<Agreed, HandshakeError>;

/// Runs both sides to the end, handing messages across by hand.
fn shake(primary: Hello, primary_key: u8, backup: Hello, backup_key: u8) -> (Outcome, Outcome) {
    let (first, open) = Handshake::new(primary, &key(primary_key)).unwrap();
    let (second, nothing) = Handshake::new(backup, &key(backup_key)).unwrap();
    assert!(nothing.is_none(), "a backup listens");
    let mut sides = [first, second];
    let mut outcomes: [Option<Outcome>; 2] = [None, None];
    let (mut message, mut to) = (open, 1);
    while let Some(bytes) = message.take() {
        let outcome = match sides[to].on_message(&bytes) {
            Ok(Step::Send(reply)) => {
                message = Some(reply);
                None
            }
            Ok(Step::SendLast(reply, agreed)) => {
                message = Some(reply);
                Some(Ok(agreed))
            }
            Ok(Step::Done(agreed)) => Some(Ok(agreed)),
            Err(Failed { reply, error }) => {
                message = reply;
                Some(Err(error))
            }
        };
        if outcomes[to].is_none() {
            outcomes[to] = outcome;
        }
        to = 1 - to;
    }
    let [first, second] = outcomes;
    (first.unwrap_or(Err(HandshakeError::Closed)), second.unwrap_or(Err(HandshakeError::Closed)))
}

fn refused(change: impl Fn(&mut Hello)) -> (String, String) {
    let mut backup = hello(Side::Backup);
    change(&mut backup);
    let (primary, backup) = shake(hello(Side::Primary), 1, backup, 1);
    let text = |outcome: Outcome| match outcome {
        Err(HandshakeError::Mismatch(found)) => found.to_string(),
        other => panic!("{other:?}"),
    };
    (text(primary), text(backup))
}

#[test]
fn equal_sides_agree_and_share_keys() {
    let (primary, backup) = shake(hello(Side::Primary), 1, hello(Side::Backup), 1);
    let (primary, backup) = (primary.unwrap(), backup.unwrap());
    assert_eq!((primary.generation, backup.generation), (5, 5));
    assert_eq!((primary.peer.side, backup.peer.side), (Side::Backup, Side::Primary));
    let (ours, theirs) = (primary.session.unwrap(), backup.session.unwrap());
    assert_eq!((ours.sent, ours.received), (theirs.received, theirs.sent));
    let (mut sealed, mut opened) = ([0; 64], [0; 64]);
    let len = ours.cipher.write_message(ours.sent, b"entry", &mut sealed).unwrap();
    let len = theirs.cipher.read_message(theirs.received, &sealed[..len], &mut opened).unwrap();
    assert_eq!(&opened[..len], b"entry");
}

#[test]
fn without_encryption_there_is_no_session() {
    let plain = |side| Hello { encrypt: false, ..hello(side) };
    let (primary, backup) = shake(plain(Side::Primary), 1, plain(Side::Backup), 1);
    assert!(primary.unwrap().session.is_none() && backup.unwrap().session.is_none());
}

#[test]
fn a_new_backup_takes_the_primarys_generation() {
    let (primary, backup) = shake(hello(Side::Primary), 1, Hello { generation: 0, ..hello(Side::Backup) }, 1);
    assert_eq!((primary.unwrap().generation, backup.unwrap().generation), (5, 5));
    let zero = Hello { generation: 0, ..hello(Side::Primary) };
    assert!(shake(zero, 1, hello(Side::Backup), 1).0.is_err(), "a primary has a generation");
}

#[test]
fn a_mismatch_is_refused_on_both_sides_with_both_values() {
    assert_eq!(
        refused(|hello| hello.generation = 6),
        ("generation: here 5, peer 6".into(), "generation: here 6, peer 5".into())
    );
    assert_eq!(
        refused(|hello| hello.encrypt = false),
        ("encryption: here on, peer off".into(), "encryption: here off, peer on".into())
    );
    let (at_primary, at_backup) = refused(|hello| hello.schema = SchemaDigest::of("t"));
    assert!(at_primary.contains(&SchemaDigest::of("s").to_string()));
    assert!(at_primary.contains(&SchemaDigest::of("t").to_string()));
    assert!(at_backup.starts_with(&format!("log schema: here {}", SchemaDigest::of("t"))));
    let (at_primary, at_backup) = refused(|hello| {
        hello.identity = Identity::builder()
            .part("kernel", "linux\u{1b}[31m 7.4", b"other")
            .part("cmdline", "console=ttyS0", b"console=ttyS0")
            .build();
    });
    assert!(at_primary.starts_with("kernel: here linux 7.3 ("), "{at_primary}");
    assert!(at_primary.contains("peer linux\\u{1b}[31m 7.4 ("), "{at_primary}");
    assert!(at_primary.contains("; memory: here 64 MiB ("), "{at_primary}");
    assert!(at_primary.ends_with("peer none"), "{at_primary}");
    assert!(at_backup.contains("memory: here none, peer 64 MiB ("), "{at_backup}");
    let (at_primary, _) = refused(|hello| hello.identity.hash[31] ^= 1);
    assert!(at_primary.starts_with("machine identity: here "), "{at_primary}");
}

#[test]
fn two_primaries_do_not_talk() {
    let (mut one, open) = Handshake::new(hello(Side::Primary), &key(1)).unwrap();
    let error = one.on_message(&open.unwrap()).unwrap_err().error;
    assert!(matches!(error, HandshakeError::OutOfTurn(MessageKind::Open)));
}

#[test]
fn different_keys_are_refused_and_the_peer_is_told() {
    let (primary, backup) = shake(hello(Side::Primary), 1, hello(Side::Backup), 2);
    assert!(matches!(backup, Err(HandshakeError::Key)));
    let Err(HandshakeError::Refused(reason)) = primary else { panic!("{primary:?}") };
    assert!(reason.contains("as the backup sees it") && reason.contains("key files"), "{reason}");
}

/// A recorded opening does not get past the answer: the verdict needs the session's fresh keys.
#[test]
fn a_replayed_opening_is_worth_nothing() {
    let (_, open) = Handshake::new(hello(Side::Primary), &key(1)).unwrap();
    let (mut backup, _) = Handshake::new(hello(Side::Backup), &key(1)).unwrap();
    assert!(matches!(backup.on_message(&open.unwrap()), Ok(Step::Send(_))));
    let forged = wrap(MessageKind::Verdict, &[0; 18]);
    assert!(matches!(backup.on_message(&forged).unwrap_err().error, HandshakeError::Key));
}

#[test]
fn every_damaged_byte_is_refused() {
    let (_, open) = Handshake::new(hello(Side::Primary), &key(1)).unwrap();
    let open = open.unwrap();
    for at in 0..open.len() {
        let (mut backup, _) = Handshake::new(hello(Side::Backup), &key(1)).unwrap();
        let mut damaged = open.clone();
        damaged[at] ^= 0x40;
        assert!(backup.on_message(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn versions_and_byte_orders_are_named_on_both_sides() {
    let (_, open) = Handshake::new(hello(Side::Primary), &key(1)).unwrap();
    let open = open.unwrap();
    for (at, expected) in [(8, "protocol version: here 1, peer 65"), (5, "byte order: here")] {
        let (mut backup, _) = Handshake::new(hello(Side::Backup), &key(1)).unwrap();
        let mut other = open.clone();
        other[at] = 65;
        let failed = backup.on_message(&other).unwrap_err();
        assert!(failed.error.to_string().starts_with(expected), "{}", failed.error);
        let (mut primary, _) = Handshake::new(hello(Side::Primary), &key(1)).unwrap();
        let heard = primary.on_message(&failed.reply.unwrap()).unwrap_err().error;
        assert!(heard.to_string().contains(expected), "{heard}");
    }
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn over_a_stream_nothing_past_the_handshake_is_read() {
    let (mut one, mut two) = streams();
    let thread = std::thread::spawn(move || {
        let agreed = run(&mut one, hello(Side::Primary), &key(1), PATIENCE).unwrap();
        one.write_all(b"first frame").unwrap();
        agreed.generation
    });
    assert_eq!(run(&mut two, hello(Side::Backup), &key(1), PATIENCE).unwrap().generation, 5);
    let mut rest = [0; 11];
    two.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"first frame");
    assert_eq!(thread.join().unwrap(), 5);
}

#[test]
fn over_a_stream_both_sides_are_told() {
    let (mut one, mut two) = streams();
    let other = Hello { generation: 9, ..hello(Side::Primary) };
    let thread = std::thread::spawn(move || run(&mut one, other, &key(1), PATIENCE).unwrap_err().to_string());
    let here = run(&mut two, hello(Side::Backup), &key(1), PATIENCE).unwrap_err().to_string();
    assert!(here.contains("generation: here 5, peer 9"), "{here}");
    let there = thread.join().unwrap();
    assert!(there.contains("generation: here 9, peer 5"), "{there}");
}

#[test]
fn a_peer_that_says_nothing_or_dribbles_is_given_up() {
    let short = Duration::from_millis(100);
    let (_one, mut two) = streams();
    let error = run(&mut two, hello(Side::Backup), &key(1), short).unwrap_err();
    assert!(matches!(error, HandshakeError::Silent(_)), "{error}");
    let (mut one, mut two) = streams();
    let thread = std::thread::spawn(move || {
        for byte in wrap(MessageKind::Open, &[0; 1000]) {
            if one.write_all(&[byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let start = std::time::Instant::now();
    let error = run(&mut two, hello(Side::Backup), &key(1), short).unwrap_err();
    assert!(matches!(error, HandshakeError::Silent(_)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
    drop(two);
    thread.join().unwrap();
}

#[test]
fn strangers_are_refused_clearly() {
    let says = |bytes: &[u8]| {
        let (mut one, mut two) = streams();
        one.write_all(bytes).unwrap();
        drop(one);
        run(&mut two, hello(Side::Backup), &key(1), PATIENCE).unwrap_err()
    };
    assert!(matches!(says(b"GET / HTTP/1.1\r\n\r\n"), HandshakeError::NotTandem(_)));
    assert!(matches!(says(b""), HandshakeError::Closed));
    assert!(matches!(says(b"TLHS"), HandshakeError::Closed));
    let mut huge = wrap(MessageKind::Open, &[]);
    huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(says(&huge), HandshakeError::Oversized(_)));
}
