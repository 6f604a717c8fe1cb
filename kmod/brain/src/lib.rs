//! The hardware-independent logic of `tandem.ko`, and its interface to user space.
//!
//! Cargo builds this file as a crate, for the VMM and for tests on the host; Kbuild builds the same modules
//! into the kernel module, by `mod.rs`. So nothing here has a dependency, allocates, does I/O or reads a
//! clock, and all paths between the modules are relative (`super::`).

#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod clock;
pub mod codec;
pub mod digest;
pub mod histogram;
pub mod instruction;
pub mod ring;
pub mod sync;
pub mod table;
pub mod trap;
pub mod vcpu;
