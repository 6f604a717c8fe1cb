//! The logic of the embedded guest: a Redis server over TCP, without an operating system.
//!
//! Everything here is a function of the frames that come in and of the time the caller passes, so
//! that two guests given the same input are equal, byte for byte: hashes have a fixed seed, maps keep
//! their order of insertion, and nothing draws a random number. The bare-metal half (start-up,
//! interrupts, memory-mapped registers) is in `main.rs`.
#![no_std]
#![cfg_attr(test, allow(clippy::unwrap_used))]

extern crate alloc;
#[cfg(test)]
extern crate std;

/// What the boot loader tells: memory map, command line, seed.
pub mod boot;

/// The Redis commands, and the engine that runs them.
pub mod command;

/// One client's byte stream: requests in, replies out.
pub mod connection;

/// A hash of the whole store, independent of insertion order.
pub mod digest;

/// Glob patterns, as KEYS and CONFIG GET use them.
pub mod glob;

/// The fixed hash of every map.
pub mod hash;

/// Numbers as Redis reads and writes them.
pub mod number;

/// Replies in RESP2.
pub mod reply;

/// Allocation that fails when a test says so.
#[cfg(test)]
mod scarcity;

/// Requests in RESP2: multi-bulk and inline.
pub mod resp;

/// The TCP server: sockets to connections.
pub mod server;

/// Keys and values, with expiry in virtual time.
pub mod store;

/// Split virtqueues and the network device, driver side.
pub mod virtio;

/// A sorted set.
pub mod zset;
