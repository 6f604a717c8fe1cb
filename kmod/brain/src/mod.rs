// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! The root of the brain inside the kernel module. `lib.rs` is its root for cargo; both list the same modules.

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
