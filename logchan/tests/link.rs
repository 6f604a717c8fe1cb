//! Both ends of a channel over each transport: order, acknowledgement, back-pressure, and every way
//! to lose it.

#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{
    ArchivedEntry, Batch, Boxed, GENERATION, batch, in_process, in_process_sealed, over_sealed_tcp, over_tcp,
};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tandem_logchan::ack::{Ack, AckError, AckFlags, AckState};
use tandem_logchan::backup::Next;
use tandem_logchan::codec::access;
use tandem_logchan::frame::{self, Flags, FrameError, HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use tandem_logchan::loss::Loss;
use tandem_logchan::primary::{AckReceiver, AppendError, LogSender};
use tandem_logchan::progress::Executed;
use tandem_logchan::transport::{Duplex, ReceiveHalf, SendHalf, TransportError, inproc, tcp::TcpConfig};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));
const SHORT: Option<Duration> = Some(Duration::from_millis(20));

/// A whole session on four threads, as in the real thing.
fn a_session((mut sender, mut acks, mut receiver, mut reader): Boxed, batches: u64) {
    let state = sender.acks().clone();
    let receive = std::thread::spawn(move || {
        loop {
            match receiver.poll(Some(Duration::from_millis(20))) {
                Ok(polled) if polled.frames == 0 => receiver.acknowledge(AckFlags::default()).unwrap(),
                Ok(_) => {}
                Err(loss) => return (loss, receiver.received()),
            }
        }
    });
    let replay = std::thread::spawn(move || {
        let mut position = 0;
        loop {
            match reader.next(PATIENCE).unwrap() {
                Next::Frame(frame) if frame.header.kind == Kind::Batch => {
                    let archived = access::<Batch>(frame.payload).unwrap();
                    assert_eq!(archived.position, position);
                    assert_eq!(archived.entries.len(), 3);
                    assert!(
                        matches!(archived.entries[2], ArchivedEntry::DiskDone { tag, .. } if tag == position)
                    );
                    assert!(archived.blob.iter().all(|&byte| byte == position as u8));
                    let sequence = frame.header.sequence;
                    reader.progress().store(Executed { sequence, position, digest: !position });
                    position += 1;
                }
                Next::Frame(frame) => {
                    assert_eq!(frame.header.kind, Kind::Goodbye);
                }
                Next::Empty => panic!("the log stopped at {position}"),
                Next::End => return position,
            }
            reader.release();
        }
    });
    let hear = std::thread::spawn(move || {
        let mut last = Ack::default();
        loop {
            match acks.poll(PATIENCE, || 42) {
                Ok(heard) => last = heard.ack.unwrap_or(last),
                Err(loss) => return (loss, last),
            }
        }
    });
    for position in 0..batches {
        let blob = if position % 50 == 49 { 200_000 } else { (position * 37 % 3000) as usize };
        let flags = if position % 3 == 0 { Flags::OUTPUT } else { Flags::NONE };
        let batch = batch(position, blob);
        loop {
            let seen = state.news().look();
            match sender.append(Kind::Batch, flags, position + 1, &batch) {
                Ok(sequence) => break assert_eq!(sequence, position + 1),
                Err(AppendError::Full { .. }) => {
                    sender.flush().unwrap();
                    state.news().wait(seen, Some(Duration::from_millis(1)));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    sender.flush().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while state.executed().sequence < batches {
        assert!(Instant::now() < deadline, "the last ack must show everything executed");
        let seen = state.news().look();
        state.news().wait(seen, Some(Duration::from_millis(5)));
    }
    let executed = state.executed();
    assert_eq!((executed.position, executed.digest), (batches - 1, !(batches - 1)));
    assert_eq!((state.echo(), state.heard_at()), (batches, 42));
    assert_eq!(state.unacknowledged(), 0);
    assert_eq!(sender.finish(Duration::from_secs(5)).unwrap(), batches + 1);
    let (loss, received) = receive.join().unwrap();
    assert!(matches!(loss, Loss::Transport(TransportError::Closed)), "{loss}");
    assert_eq!(received, batches + 1);
    assert_eq!(replay.join().unwrap(), batches);
    let (loss, last) = hear.join().unwrap();
    assert!(matches!(loss, Loss::Transport(_)), "{loss}");
    assert_eq!(last.received, batches + 1, "the goodbye was acknowledged before the end");
}

#[test]
fn a_session_in_process() {
    a_session(in_process(0).0, 2000);
}

#[test]
fn a_session_over_tcp() {
    a_session(over_tcp(&TcpConfig::default(), 0), 2000);
}

#[test]
fn a_session_over_tcp_with_zero_copy() {
    a_session(over_tcp(&TcpConfig { zero_copy_from: 1, ..TcpConfig::default() }, 0), 500);
}

#[test]
fn a_session_over_encrypted_tcp() {
    a_session(over_sealed_tcp(), 120);
}

#[test]
fn a_session_encrypted_in_process() {
    a_session(in_process_sealed().0, 120);
}

#[test]
fn an_altered_encrypted_stream_does_not_open_either_way() {
    let ((mut sender, mut acks, mut receiver, mut reader), log_faults, ack_faults) = in_process_sealed();
    sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(0, 100)).unwrap();
    assert_eq!(receiver.poll(SHORT).unwrap().frames, 1);
    log_faults.corrupt(40, 1);
    sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(1, 100)).unwrap();
    let loss = receiver.poll(SHORT).unwrap_err();
    assert!(matches!(loss, Loss::Transport(TransportError::Seal)), "{loss:?}");
    assert!(matches!(reader.next(SHORT).unwrap(), Next::Frame(_)));
    reader.release();
    assert_eq!(reader.next(SHORT).unwrap(), Next::End);
    // The ack of the first frame was on its way before; the next one is altered.
    assert_eq!(acks.poll(SHORT, || 1).unwrap().ack.unwrap().received, 1);
    ack_faults.corrupt(5, 1);
    receiver.acknowledge(AckFlags::default()).unwrap();
    receiver.push().unwrap();
    assert!(matches!(acks.poll(SHORT, || 1), Err(Loss::Transport(TransportError::Seal))));
}

#[test]
fn several_frames_in_one_read_get_one_ack() {
    let ((mut sender, mut acks, mut receiver, _reader), ..) = in_process(0);
    for position in 0..5 {
        sender.append(Kind::Batch, Flags::NONE, 0, &batch(position, 10)).unwrap();
    }
    assert_eq!(receiver.poll(SHORT).unwrap().frames, 0, "nothing leaves before the flush");
    sender.flush().unwrap();
    assert_eq!(receiver.poll(SHORT).unwrap().frames, 5);
    receiver.push().unwrap();
    assert_eq!(acks.poll(SHORT, || 1).unwrap().ack.unwrap().received, 5);
    assert_eq!(acks.poll(SHORT, || 1).unwrap().ack, None);
    sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(5, 10)).unwrap();
    assert_eq!(receiver.poll(SHORT).unwrap().frames, 1, "an output does not wait");
}

#[test]
fn a_full_ring_stalls_the_receiver_until_the_replay_goes_on() {
    let ((mut sender, _acks, mut receiver, mut reader), ..) = in_process(0);
    let blob = vec![1; 1 << 20];
    for _ in 0..7 {
        sender.append_bytes(Kind::State, Flags::OUTPUT, 0, &blob).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stalled = false;
    while receiver.received() < 7 && Instant::now() < deadline {
        stalled = receiver.poll(SHORT).unwrap().stalled;
        if stalled {
            break;
        }
    }
    // 8 MiB of ring (rounded to 16) take all seven; fill the rest.
    while !stalled && Instant::now() < deadline {
        sender.append_bytes(Kind::State, Flags::OUTPUT, 0, &blob).unwrap();
        for _ in 0..8 {
            stalled |= receiver.poll(Some(Duration::from_millis(1))).unwrap().stalled;
        }
    }
    assert!(stalled);
    let before = receiver.received();
    assert_eq!(receiver.poll(SHORT).unwrap().frames, 0);
    let replay = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        for _ in 0..4 {
            assert!(matches!(reader.next(PATIENCE).unwrap(), Next::Frame(_)));
            reader.release();
        }
        reader
    });
    while receiver.received() == before && Instant::now() < deadline {
        receiver.poll(PATIENCE).unwrap();
    }
    assert!(receiver.received() > before, "woken by the replay, not by the timeout");
    replay.join().unwrap();
}

#[test]
fn a_held_network_fills_the_senders_buffer_and_nothing_is_lost() {
    let ((mut sender, _acks, mut receiver, mut reader), faults, _) = in_process(0);
    faults.hold(true);
    let mut appended = 0;
    let full = loop {
        match sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(appended, 1 << 20)) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::Full { queued, capacity } if queued > capacity / 2));
    faults.hold(false);
    sender.flush().unwrap();
    let mut read = 0;
    while read < appended {
        receiver.poll(Some(Duration::ZERO)).unwrap();
        while let Next::Frame(frame) = reader.next(Some(Duration::ZERO)).unwrap() {
            assert_eq!(access::<Batch>(frame.payload).unwrap().position, read);
            read += 1;
            reader.release();
        }
    }
    sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(appended, 1 << 20)).unwrap();
}

#[test]
fn the_largest_frame_crosses_and_a_larger_value_is_refused() {
    let (mut sender, _acks, mut receiver, mut reader) = over_tcp(&TcpConfig::default(), 0);
    sender.append_bytes(Kind::State, Flags::OUTPUT, 0, &vec![0x5a; MAX_PAYLOAD]).unwrap();
    while receiver.received() == 0 {
        receiver.poll(PATIENCE).unwrap();
    }
    let Next::Frame(frame) = reader.next(PATIENCE).unwrap() else { panic!("no frame") };
    assert_eq!(frame.payload.len(), MAX_PAYLOAD);
    assert!(matches!(
        sender.append_bytes(Kind::State, Flags::NONE, 0, &vec![0; MAX_PAYLOAD + 1]),
        Err(AppendError::Encode(_))
    ));
    assert!(matches!(
        sender.append(Kind::Batch, Flags::NONE, 0, &batch(0, MAX_PAYLOAD)),
        Err(AppendError::Encode(_))
    ));
}

/// A link whose far end is driven by hand with raw bytes.
fn raw() -> (
    inproc::InprocSend,
    AckReceiver<inproc::InprocReceive>,
    common::Boxed,
    Arc<AckState>,
    inproc::InprocDuplex,
) {
    let to_backup = inproc::link(0).unwrap();
    let to_primary = inproc::link(0).unwrap();
    let acks = Arc::new(AckState::new());
    let boxed: Box<dyn Duplex> = Box::new(to_backup.backup);
    let (receiver, reader) = tandem_logchan::backup::pair(boxed, GENERATION, 0);
    let half: Box<dyn SendHalf> = Box::new(to_primary.send);
    let hear: Box<dyn ReceiveHalf> = Box::new(to_backup.receive);
    let sender = LogSender::new(half, GENERATION, acks.clone());
    let unused = AckReceiver::new(hear, GENERATION, Arc::new(AckState::new()));
    let receive = AckReceiver::new(to_primary.receive, GENERATION, acks.clone());
    (to_backup.send, receive, (sender, unused, receiver, reader), acks, to_primary.backup)
}

fn framed(kind: Kind, generation: u64, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let header = Header { kind, flags: Flags::NONE, generation, sequence, stamp: 0 };
    let mut bytes = vec![0; frame::frame_len(payload.len())];
    frame::encode(&header, payload, &mut bytes).unwrap();
    bytes
}

/// What the backup says to these bytes; one good frame goes before them.
fn backup_says(bytes: &[u8]) -> Loss {
    let (mut send, _hear, (_sender, mut acks, mut receiver, mut reader), ..) = raw();
    let good = framed(Kind::Batch, GENERATION, 1, b"good");
    for bytes in [&good[..], bytes] {
        send.room()[..bytes.len()].copy_from_slice(bytes);
        send.commit(bytes.len());
    }
    send.flush().unwrap();
    let loss = loop {
        match receiver.poll(SHORT) {
            Ok(polled) => assert!(polled.frames > 0, "the bytes were waited for, not refused"),
            Err(loss) => break loss,
        }
    };
    assert_eq!(receiver.received(), 1, "only the good frame counts");
    assert!(matches!(receiver.poll(SHORT), Err(Loss::LostBefore)));
    // What was good is replayed, what was not is not, and then the log ends.
    assert!(matches!(reader.next(SHORT).unwrap(), Next::Frame(frame) if frame.payload == b"good"));
    reader.release();
    assert_eq!(reader.next(SHORT).unwrap(), Next::End);
    let acked = AckState::new();
    let _ = (acks.poll(Some(Duration::ZERO), || 0), acked);
    loss
}

#[test]
fn the_backup_names_what_is_wrong() {
    let next = |kind, generation, sequence| framed(kind, generation, sequence, b"bad");
    assert!(matches!(backup_says(&next(Kind::Batch, GENERATION, 3)), Loss::Gap { expected: 2, found: 3 }));
    assert!(matches!(backup_says(&next(Kind::Batch, GENERATION, 1)), Loss::Gap { expected: 2, found: 1 }));
    assert!(matches!(backup_says(&next(Kind::Batch, 6, 2)), Loss::Generation { ours: 7, found: 6 }));
    assert!(matches!(backup_says(&next(Kind::Ack, GENERATION, 2)), Loss::Direction(Kind::Ack)));
    let mut damaged = next(Kind::Batch, GENERATION, 2);
    damaged[HEADER_LEN] ^= 1;
    assert!(matches!(
        backup_says(&damaged),
        Loss::Frame { after: 1, error: FrameError::PayloadChecksum { .. } }
    ));
    damaged[12] ^= 1;
    assert!(matches!(
        backup_says(&damaged),
        Loss::Frame { after: 1, error: FrameError::HeaderChecksum { .. } }
    ));
    damaged[0] = 0;
    assert!(matches!(backup_says(&damaged), Loss::Frame { after: 1, error: FrameError::Magic(_) }));
}

#[test]
fn the_primary_names_what_is_wrong() {
    let says = |bytes: &[u8]| {
        let (_send, mut hear, (mut sender, ..), acks, mut backup) = raw();
        sender.append_bytes(Kind::Batch, Flags::NONE, 0, b"one").unwrap();
        assert!(backup.reply(bytes).unwrap());
        backup.push().unwrap();
        let loss = hear.poll(SHORT, || 9).unwrap_err();
        assert_eq!(acks.received(), 0);
        assert!(matches!(hear.poll(SHORT, || 9), Err(Loss::LostBefore)));
        loss
    };
    let ack = |received, generation, sequence| {
        let mut bytes = vec![0; 96];
        Ack { received, ..Ack::default() }.encode(generation, sequence, &mut bytes).unwrap();
        bytes
    };
    let loss = says(&ack(2, GENERATION, 1));
    assert!(matches!(loss, Loss::Ack(AckError::NeverSent { received: 2, sent: 1 })));
    assert_eq!(loss.source().unwrap().to_string(), "ack of frame 2, but only 1 were sent");
    assert!(matches!(says(&ack(1, GENERATION, 2)), Loss::Gap { expected: 1, found: 2 }));
    assert!(matches!(says(&ack(1, 8, 1)), Loss::Generation { ours: 7, found: 8 }));
    assert!(matches!(says(&framed(Kind::Batch, GENERATION, 1, b"")), Loss::Direction(Kind::Batch)));
    assert!(matches!(says(&framed(Kind::Ack, GENERATION, 1, b"short")), Loss::Ack(AckError::Length(_))));
    assert!(matches!(says(&framed(Kind::Ack, GENERATION, 1, &[0; 500])), Loss::Ack(AckError::Length(_))));
    let mut damaged = ack(1, GENERATION, 1);
    damaged[60] ^= 1;
    assert!(matches!(says(&damaged), Loss::Frame { after: 0, error: FrameError::PayloadChecksum { .. } }));
}

#[test]
fn a_flipped_bit_anywhere_loses_the_channel_and_never_an_entry() {
    for at in (0..200).step_by(3) {
        let ((mut sender, _acks, mut receiver, mut reader), faults, _) = in_process(0);
        faults.corrupt(at, 0x10);
        for position in 0..4 {
            sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(position, 40)).unwrap();
        }
        let mut lost = false;
        for _ in 0..10 {
            lost |= receiver.poll(Some(Duration::from_millis(1))).is_err();
        }
        assert!(lost, "bit flip at {at} went unnoticed");
        let mut position = 0;
        while let Next::Frame(frame) = reader.next(SHORT).unwrap() {
            let archived = access::<Batch>(frame.payload).unwrap();
            assert_eq!(archived.position, position);
            assert!(archived.blob.iter().all(|&byte| byte == position as u8));
            position += 1;
            reader.release();
        }
        assert!(position < 4);
    }
}

#[test]
fn a_dead_primary_leaves_its_log_to_be_drained() {
    let ((mut sender, acks, mut receiver, mut reader), ..) = in_process(0);
    for position in 0..10 {
        sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(position, 10)).unwrap();
    }
    drop((sender, acks));
    let mut polls = 0;
    while receiver.poll(SHORT).is_ok() {
        polls += 1;
        assert!(polls < 100);
    }
    assert_eq!(receiver.received(), 10);
    for position in 0..10 {
        let Next::Frame(frame) = reader.next(SHORT).unwrap() else { panic!("frame {position} is missing") };
        assert_eq!(access::<Batch>(frame.payload).unwrap().position, position);
        reader.release();
    }
    assert_eq!(reader.next(None).unwrap(), Next::End);
}

#[test]
fn a_receiver_that_is_dropped_ends_the_log_for_a_sleeping_reader() {
    let ((mut sender, _acks, mut receiver, mut reader), ..) = in_process(0);
    sender.append(Kind::Batch, Flags::OUTPUT, 0, &batch(0, 10)).unwrap();
    receiver.poll(SHORT).unwrap();
    let replay = std::thread::spawn(move || {
        assert!(matches!(reader.next(None).unwrap(), Next::Frame(_)));
        reader.release();
        matches!(reader.next(None).unwrap(), Next::End)
    });
    std::thread::sleep(Duration::from_millis(20));
    drop(receiver);
    assert!(replay.join().unwrap());
}

#[test]
fn a_cut_link_is_silence_that_the_caller_sees_in_the_ack_state() {
    let ((mut sender, mut acks, mut receiver, _reader), faults, _) = in_process(0);
    sender.heartbeat(5).unwrap();
    receiver.poll(SHORT).unwrap();
    receiver.push().unwrap();
    acks.poll(SHORT, || 100).unwrap();
    assert_eq!((sender.acks().echo(), sender.acks().heard_at()), (5, 100));
    faults.cut();
    sender.heartbeat(6).unwrap();
    assert_eq!(receiver.poll(SHORT).unwrap().frames, 0);
    assert_eq!(acks.poll(SHORT, || 200).unwrap().ack, None);
    assert_eq!((sender.acks().heard_at(), sender.acks().unacknowledged()), (100, 1));
}
