//! The bare-metal half of the guest: what only runs on the machine itself.

/// Start-up and interrupt entry, the only code that runs in ring 0.
mod entry;

/// The idle doorbell: waiting, time, power, console.
pub(crate) mod doorbell;

/// What happens when the processor or the code gives up.
mod fault;

/// The heap.
pub(crate) mod heap;

/// Interrupts, as ring 3 sees them: counters.
pub(crate) mod interrupts;

/// Memory-mapped device registers.
pub(crate) mod mmio;

/// memcpy and its kin, which the compiler calls by name.
mod memory;

/// Page, segment and interrupt tables, laid out by the compiler.
mod tables;
