//! Model-specific registers.
//!
//! KVM handles those in `PASSED`, which are plain state of the vCPU. Any other access leaves the
//! guest as an exit (KVM_X86_SET_MSR_FILTER, default deny) and gets the answer of `read` or
//! `write`: a value, silence, or #GP, the same on every host.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

/// An MSR, or a run of them, that KVM may handle.
#[derive(Clone, Copy, Debug)]
pub struct PassedMsr {
    /// First index.
    pub base: u32,
    /// How many, at least 1.
    pub count: u32,
    /// Whether it is part of the vCPU's image (state transfer).
    pub saved: bool,
    /// Name, for people.
    pub name: &'static str,
}

const fn pass(base: u32, count: u32, saved: bool, name: &'static str) -> PassedMsr {
    PassedMsr { base, count, saved, name }
}

/// MSRs that hold nothing but what the guest wrote to them. SDM volume 4, table 2-2; APM volume 2,
/// appendix A.
pub const PASSED: &[PassedMsr] = &[
    pass(0x174, 3, true, "SYSENTER_CS, ESP, EIP"),
    pass(0xfe, 1, false, "MTRRcap"),
    pass(0x200, 16, true, "MTRR variable ranges"),
    pass(0x250, 1, true, "MTRR fix 64K"),
    pass(0x258, 2, true, "MTRR fix 16K"),
    pass(0x268, 8, true, "MTRR fix 4K"),
    pass(0x277, 1, true, "PAT"),
    pass(0x2ff, 1, true, "MTRR default type"),
    pass(0xc000_0080, 1, false, "EFER (saved with the special registers)"),
    pass(0xc000_0081, 4, true, "STAR, LSTAR, CSTAR, SFMASK"),
    pass(0xc000_0100, 2, false, "FS.base, GS.base (saved with the special registers)"),
    pass(0xc000_0102, 1, true, "KERNEL_GS_BASE"),
];

/// The time stamp counter, where the kernel module captures it: reads give the value last read by RDTSC, writes are
/// dropped.
pub const TSC: u32 = 0x10;

/// What RDTSCP puts in ECX, where the kernel module captures it.
pub const TSC_AUX: u32 = 0xc000_0103;

/// What an access outside the passed list gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The access succeeds; a read yields this value, a write is dropped.
    Value(u64),
    /// #GP(0), as a CPU without that register gives.
    Fault,
}

/// Registers that a kernel reads without asking CPUID first, and what they hold here.
const FIXED: &[(u32, u64, &str)] = &[
    (0x17, 0, "IA32_PLATFORM_ID"),
    (0x8b, 0, "microcode revision"),
    (0x1a0, 1, "IA32_MISC_ENABLE: fast strings"),
    (0x179, 0, "MCG_CAP: no machine-check banks"),
    (0x17a, 0, "MCG_STATUS"),
    (0x34, 0, "SMI count"),
    (0xce, 0, "PLATFORM_INFO"),
    (0x140, 0, "MISC_FEATURE_ENABLES"),
    (0x10a, 0, "ARCH_CAPABILITIES"),
    (0x1d9, 0, "DEBUGCTL"),
    (0x48, 0, "SPEC_CTRL"),
    (0xc001_0015, 0, "HWCR"),
    (0xc001_0010, 0, "SYSCFG"),
    (0xc001_001f, 0, "NB_CFG"),
    (0xc001_0112, 0, "TSEG base"),
    (0xc001_0113, 0, "TSEG mask"),
    (0xc001_0140, 0, "OSVW id length"),
    (0xc001_0141, 0, "OSVW status"),
    (0xc001_1020, 0, "LS_CFG"),
    (0xc001_1022, 0, "DC_CFG"),
    (0xc001_1029, 2, "DE_CFG: LFENCE serialises"),
    (0xc001_102a, 0, "BU_CFG2"),
    (0xc000_0104, 0, "TSC ratio"),
];

/// The answer to RDMSR of an index outside [`PASSED`].
#[must_use]
pub fn read(index: u32) -> Answer {
    FIXED.iter().find(|(i, _, _)| *i == index).map_or(Answer::Fault, |(_, value, _)| Answer::Value(*value))
}

/// The answer to WRMSR of an index outside [`PASSED`].
#[must_use]
pub fn write(index: u32) -> Answer {
    read(index)
}

/// All saved indexes, in order.
pub fn saved() -> impl Iterator<Item = u32> {
    PASSED.iter().filter(|m| m.saved).flat_map(|m| m.base..m.base + m.count)
}

/// The bitmap of one filter range: every register of `msr` may be read and written.
#[must_use]
pub fn bitmap(msr: &PassedMsr) -> Vec<u8> {
    let mut bits = vec![0u8; (msr.count as usize).div_ceil(8)];
    for i in 0..msr.count as usize {
        bits[i / 8] |= 1 << (i % 8);
    }
    bits
}

/// Makes every access outside [`PASSED`] an exit.
///
/// # Errors
/// The call that KVM refused, by name, and why.
pub fn filter(vm: &VmFd) -> Result<(), (&'static str, kvm_ioctls::Error)> {
    let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
    let cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(reasons), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(|error| ("KVM_CAP_X86_USER_SPACE_MSR", error))?;
    let bitmaps: Vec<_> = PASSED.iter().map(bitmap).collect();
    let ranges: Vec<_> = PASSED
        .iter()
        .zip(&bitmaps)
        .map(|(msr, bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: msr.base,
            msr_count: msr.count,
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
        .map_err(|error| ("KVM_X86_SET_MSR_FILTER", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_register_is_both_passed_and_answered() {
        for (index, _, name) in FIXED {
            assert!(
                !PASSED.iter().any(|m| (m.base..m.base + m.count).contains(index)),
                "{name} would never reach its answer"
            );
        }
        assert_eq!(read(0x10), Answer::Fault, "the time-stamp counter is hidden");
    }

    #[test]
    fn filter_ranges_fit_what_kvm_takes() {
        assert!(PASSED.len() <= 16, "KVM_MSR_FILTER_MAX_RANGES");
        assert_eq!(bitmap(&pass(0, 9, true, "")), [0xff, 1]);
    }
}
