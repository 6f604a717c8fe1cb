// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! The atomics that everything here uses: the machine's, or the model checker's.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
