//! The virtual CPU: what it claims to be, which MSRs it has, how it is entered and left.

/// Instructions captured by the kernel module.
pub mod capture;

/// A page of registers that the guest reads without an exit.
pub mod clock_page;

/// What CPUID shows the guest: one table, with a reason for each bit that is hidden.
pub mod cpuid;

/// Deterministic exits: their decoded form.
pub mod exit;

/// A full image of the CPU's state, for forced stops and comparison.
pub mod image;

/// Which MSRs the guest may touch, and the explicit answers for the rest.
pub mod msr;

/// KVM's shadow of the guest's page tables.
pub mod shadow;

/// The vCPU itself, on KVM.
pub mod vcpu;
