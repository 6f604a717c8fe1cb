//! Tandem's logging channel.
//!
//! It moves opaque frames from a primary to its backup, reliably and in order, and acknowledgements
//! back. A frame is a fixed header and an rkyv archive, 16-byte aligned, so that the backup reads
//! entries in place, straight from the ring that the network thread wrote them to. What the entries
//! mean is the business of the crates above: nothing in here knows of a virtual machine.
//!
//! The path of an entry, and the thread each step runs on:
//!
//! ```text
//! primary, vCPU thread            backup, receive thread             backup, replay thread
//! LogSender::append ── flush ──▶  LogReceiver::poll ── ring ──────▶  LogReader::next
//!                                     │ ack                               │ Progress::store
//! primary, I/O thread                 ▼                                   ▼
//! AckReceiver::poll ◀──────────── {received, executed, digest, echo} ◀────┘
//! ```
//!
//! The wire format is described in `docs/protocol.md`.

#![cfg_attr(not(test), warn(clippy::expect_used))]
#![cfg_attr(test, allow(clippy::unwrap_used))]

// Acknowledgements: what the backup has received and executed.
pub mod ack;

// What an ack says beside its numbers.
mod ack_flags;

// The backup's end: frames off the wire into the ring, acknowledged on receipt.
pub mod backup;

// From a connected stream to a channel, in one call.
pub mod channel;

// crc32c, in the way that is the quickest on this CPU.
pub mod checksum;

// rkyv archives in frames: encoding without allocation, validated access in place.
pub mod codec;

// Sleeping until another thread has news.
pub mod doorbell;

// The fixed header around every payload, and its checks.
pub mod frame;

// Acks that have come and that nobody has taken in yet.
pub mod glance;

// Who may talk to whom: versions, identity of the machine, pre-shared key.
pub mod handshake;

// Heartbeat datagrams.
pub mod heartbeat;

// Why a channel was given up.
pub mod loss;

// Looking for what is to come before sleeping for it.
mod polling;

// The primary's end: append, flush, acknowledgements.
pub mod primary;

// How far the replay has come, published without a lock.
pub mod progress;

// A bounded ring of frames between two threads.
pub mod ring;

// What carries the bytes.
pub mod transport;

mod sync;
