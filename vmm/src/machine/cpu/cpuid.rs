//! What CPUID shows the guest.
//!
//! KVM's supported set is the starting point. Every bit below is hidden because the guest could learn
//! from the feature behind it something that is not a function of its past (see `docs/determinism.md`).

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use tandem_kmod_brain::trap::Trap;

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// One hidden bit.
#[derive(Clone, Copy, Debug)]
pub struct HiddenBit {
    /// CPUID leaf (EAX on entry).
    pub leaf: u32,
    /// Sub-leaf (ECX on entry); `None` for leaves without one.
    pub subleaf: Option<u32>,
    /// Register of the answer.
    pub register: Register,
    /// Bit number, 0 to 31.
    pub bit: u8,
    /// The feature's name.
    pub name: &'static str,
    /// Why the guest must not have it.
    pub reason: &'static str,
    /// What is behind it, if the kernel module can capture that: where it does, the guest may have it.
    pub trap: Option<Trap>,
}

const fn hide(
    leaf: u32,
    subleaf: Option<u32>,
    register: Register,
    bit: u8,
    name: &'static str,
    reason: &'static str,
) -> HiddenBit {
    HiddenBit { leaf, subleaf, register, bit, name, reason, trap: None }
}

/// Hidden unless the kernel module captures the instruction behind it.
const fn capture(trap: Trap, hidden: HiddenBit) -> HiddenBit {
    HiddenBit { trap: Some(trap), ..hidden }
}

const TIME: &str = "reads host time without an exit";
const RANDOM: &str = "returns randomness without an exit";
const HOST_CPU: &str = "tells which host CPU the vCPU runs on";
const TIMED_WAIT: &str = "waits for a host time or a cache line: its length is not a function of the past";
const ABORTS: &str = "aborts at the host's whim";
const COUNTERS: &str = "counts host events";
const NO_APIC: &str = "the interrupt controller is the 8259 pair: a local APIC would inject asynchronously";
const NESTED: &str = "nested virtualisation is not replayed";
const IMAGE: &str = "the saved image depends on what the host's context switches left modified";
const STALE_TLB: &str =
    "keeps translations over a CR3 load: more room for stale entries that differ per host";
const TRACE: &str = "writes host-timed trace records into guest memory";

use Register::{Eax, Ebx, Ecx, Edx};

/// Every hidden bit. SDM volume 2A "CPUID", APM volume 3 appendix E.
pub const HIDDEN: &[HiddenBit] = &[
    hide(1, None, Ecx, 2, "DTES64", TRACE),
    hide(1, None, Ecx, 3, "MONITOR", TIMED_WAIT),
    hide(1, None, Ecx, 4, "DS-CPL", TRACE),
    hide(1, None, Ecx, 5, "VMX", NESTED),
    hide(1, None, Ecx, 7, "EIST", HOST_CPU),
    hide(1, None, Ecx, 8, "TM2", HOST_CPU),
    hide(1, None, Ecx, 15, "PDCM", COUNTERS),
    hide(1, None, Ecx, 17, "PCID", STALE_TLB),
    hide(1, None, Ecx, 21, "x2APIC", NO_APIC),
    hide(1, None, Ecx, 24, "TSC-Deadline", TIME),
    capture(Trap::Rdrand, hide(1, None, Ecx, 30, "RDRAND", RANDOM)),
    capture(Trap::Rdtsc, hide(1, None, Edx, 4, "TSC", TIME)),
    hide(1, None, Edx, 9, "APIC", NO_APIC),
    hide(1, None, Edx, 21, "DS", TRACE),
    hide(1, None, Edx, 22, "ACPI thermal", HOST_CPU),
    hide(1, None, Edx, 29, "TM", HOST_CPU),
    hide(7, Some(0), Ebx, 1, "TSC_ADJUST", TIME),
    hide(7, Some(0), Ebx, 2, "SGX", RANDOM),
    hide(7, Some(0), Ebx, 4, "HLE", ABORTS),
    hide(7, Some(0), Ebx, 10, "INVPCID", STALE_TLB),
    hide(7, Some(0), Ebx, 11, "RTM", ABORTS),
    hide(7, Some(0), Ebx, 12, "PQM", COUNTERS),
    hide(7, Some(0), Ebx, 15, "PQE", HOST_CPU),
    capture(Trap::Rdseed, hide(7, Some(0), Ebx, 18, "RDSEED", RANDOM)),
    hide(7, Some(0), Ebx, 25, "Intel PT", TRACE),
    hide(7, Some(0), Ecx, 5, "WAITPKG", TIMED_WAIT),
    hide(7, Some(0), Ecx, 22, "RDPID", HOST_CPU),
    hide(7, Some(0), Ecx, 24, "bus-lock detect", ABORTS),
    hide(7, Some(0), Edx, 16, "TSX suspend", ABORTS),
    hide(7, Some(0), Edx, 19, "architectural LBR", TRACE),
    hide(0xd, Some(1), Eax, 0, "XSAVEOPT", IMAGE),
    hide(0xd, Some(1), Eax, 1, "XSAVEC", IMAGE),
    hide(0xd, Some(1), Eax, 2, "XGETBV(1)", IMAGE),
    hide(0xd, Some(1), Eax, 3, "XSAVES", IMAGE),
    hide(0x8000_0001, None, Ecx, 2, "SVM", NESTED),
    hide(0x8000_0001, None, Ecx, 3, "extended APIC space", NO_APIC),
    hide(0x8000_0001, None, Ecx, 10, "IBS", COUNTERS),
    hide(0x8000_0001, None, Ecx, 12, "SKINIT", NESTED),
    hide(0x8000_0001, None, Ecx, 15, "LWP", COUNTERS),
    hide(0x8000_0001, None, Ecx, 23, "core performance counters", COUNTERS),
    hide(0x8000_0001, None, Ecx, 24, "NB performance counters", COUNTERS),
    hide(0x8000_0001, None, Ecx, 28, "L2 performance counters", COUNTERS),
    hide(0x8000_0001, None, Ecx, 29, "MWAITX", TIMED_WAIT),
    capture(Trap::Rdtsc, hide(0x8000_0001, None, Edx, 4, "TSC", TIME)),
    hide(0x8000_0001, None, Edx, 9, "APIC", NO_APIC),
    capture(Trap::Rdtscp, hide(0x8000_0001, None, Edx, 27, "RDTSCP", TIME)),
    capture(Trap::Rdtsc, hide(0x8000_0007, None, Edx, 8, "invariant TSC", TIME)),
    hide(0x8000_0007, None, Edx, 10, "effective frequency", COUNTERS),
    hide(0x8000_0008, None, Ebx, 4, "RDPRU", TIME),
];

/// Leaves that are answered with zeros as a whole, with the reason.
pub const EMPTY_LEAVES: &[(u32, &str)] = &[
    (0x5, TIMED_WAIT),
    (0x6, HOST_CPU),
    (0xa, COUNTERS),
    (0xf, COUNTERS),
    (0x10, HOST_CPU),
    (0x12, RANDOM),
    (0x14, TRACE),
    (0x15, TIME),
    (0x16, TIME),
    (0x1c, TRACE),
    (0x1d, IMAGE),
    (0x23, COUNTERS),
    (0x8000_000a, NESTED),
    (0x8000_001b, COUNTERS),
    (0x8000_001c, COUNTERS),
    (0x8000_001e, HOST_CPU),
    (0x8000_001f, NESTED),
    (0x8000_0020, HOST_CPU),
    (0x8000_0022, COUNTERS),
    (0x8000_0026, HOST_CPU),
];

/// Leaves that name the place of a CPU in its package: a machine of one vCPU has one answer.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];

/// First leaf of the range that hypervisors use: no paravirtual clock, no asynchronous page faults,
/// no steal time.
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;

/// Filters what KVM supports down to what is deterministic. `captured` are the traps (by `Trap::bit`) that the kernel
/// module serves: the guest has the instructions behind them. The virtual TSC is invariant whatever the host's is.
/// Entries come out sorted, so that two hosts of one kind agree on the digest.
#[must_use]
pub fn filter(supported: &[kvm_cpuid_entry2], captured: u32) -> Vec<kvm_cpuid_entry2> {
    let is_captured = |trap: Trap| captured & trap.bit() != 0;
    let mut entries: Vec<_> = supported
        .iter()
        .copied()
        .filter(|e| !HYPERVISOR_LEAVES.contains(&e.function))
        .filter(|e| !EMPTY_LEAVES.iter().any(|(leaf, _)| *leaf == e.function))
        .filter(|e| !TOPOLOGY_LEAVES.contains(&e.function))
        .collect();
    for entry in &mut entries {
        for hidden in HIDDEN.iter().filter(|hidden| !hidden.trap.is_some_and(is_captured)) {
            if hidden.leaf == entry.function && hidden.subleaf.is_none_or(|s| s == entry.index) {
                *register_mut(entry, hidden.register) &= !(1 << hidden.bit);
            }
        }
        match entry.function {
            // EBX: initial APIC id, logical processors; both are host facts.
            1 => entry.ebx = (entry.ebx & 0x0000_ffff) | (1 << 16),
            // EAX: how many threads share a cache, cores in the package.
            4 => entry.eax &= 0x0000_3fff,
            // Sub-leaf 1 EBX: size of a compacted image, which cannot be made.
            0xd if entry.index == 1 => entry.ebx = 0,
            0x8000_0007 if is_captured(Trap::Rdtsc) => entry.edx |= 1 << 8,
            0x8000_0008 => entry.ecx = 0,
            0x8000_001d => entry.eax &= 0x0000_3fff,
            _ => {}
        }
    }
    entries.sort_by_key(|e| (e.function, e.index));
    entries
}

/// The traps (by `Trap::bit`) of instructions that the guest has: those that no bit stands for, and those that some
/// bit shows.
#[must_use]
pub fn shown(entries: &[kvm_cpuid_entry2]) -> u32 {
    let is_set = |hidden: &HiddenBit| {
        entries.iter().any(|entry| {
            hidden.leaf == entry.function
                && hidden.subleaf.is_none_or(|s| s == entry.index)
                && register(entry, hidden.register) >> hidden.bit & 1 == 1
        })
    };
    let is_shown = |trap: &Trap| {
        let mut bits = HIDDEN.iter().filter(|hidden| hidden.trap == Some(*trap)).peekable();
        bits.peek().is_none() || bits.any(is_set)
    };
    Trap::ALL.into_iter().filter(is_shown).map(Trap::bit).sum()
}

const fn register(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    }
}

fn register_mut(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Eax => &mut entry.eax,
        Ebx => &mut entry.ebx,
        Ecx => &mut entry.ecx,
        Edx => &mut entry.edx,
    }
}

/// The filtered set in the form that KVM takes.
///
/// # Errors
/// When there are more entries than KVM accepts (256 here).
pub fn to_kvm(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, vmm_sys_util::fam::Error> {
    CpuId::from_entries(entries)
}

/// All entries as bytes in a fixed order, for the VM's identity.
#[must_use]
pub fn identity_bytes(entries: &[kvm_cpuid_entry2]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|e| [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx])
        .flat_map(u32::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_kmod_brain::trap::ALL_TRAPS;

    fn full(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() }
    }

    #[test]
    fn every_hidden_bit_is_gone_and_has_a_reason() {
        let all: Vec<_> = HIDDEN
            .iter()
            .map(|h| full(h.leaf, h.subleaf.unwrap_or(0)))
            .chain([full(0x4000_0001, 0)])
            .collect();
        let mut out = filter(&all, 0);
        assert!(out.iter().all(|e| e.function != 0x4000_0001));
        for h in HIDDEN {
            assert!(!h.reason.is_empty() && !h.name.is_empty());
            for e in out.iter_mut().filter(|e| e.function == h.leaf && h.subleaf.is_none_or(|s| s == e.index))
            {
                assert_eq!(*register_mut(e, h.register) >> h.bit & 1, 0, "{} still there", h.name);
            }
        }
    }

    #[test]
    fn what_is_captured_is_shown_and_nothing_else_is() {
        let all = [
            full(1, 0),
            full(7, 0),
            full(0x8000_0001, 0),
            kvm_cpuid_entry2 { edx: 0, ..full(0x8000_0007, 0) },
        ];
        let words = |captured| {
            let entries = filter(&all, captured);
            entries.iter().map(|e| [e.eax, e.ebx, e.ecx, e.edx]).collect::<Vec<_>>()
        };
        let differences = |captured| {
            let (with, without) = (words(captured), words(0));
            let pairs = with.into_iter().flatten().zip(without.into_iter().flatten());
            pairs.map(|(a, b)| a ^ b).enumerate().filter(|(_, bits)| *bits != 0).collect::<Vec<_>>()
        };
        // Number of the word: four to an entry.
        let cases = [
            (Trap::Rdtsc, vec![(3, 1 << 4), (11, 1 << 4), (15, 1 << 8)]),
            (Trap::Rdtscp, vec![(11, 1 << 27)]),
            (Trap::Rdpmc, vec![]),
            (Trap::Rdrand, vec![(2, 1 << 30)]),
            (Trap::Rdseed, vec![(5, 1 << 18)]),
        ];
        for (trap, wanted) in cases {
            assert_eq!(differences(trap.bit()), wanted, "{}", trap.name());
            assert_eq!(shown(&filter(&all, trap.bit())), trap.bit() | Trap::Rdpmc.bit());
        }
        // A host that has not what the module can serve.
        assert_eq!(shown(&filter(&all[..1], ALL_TRAPS)) & (Trap::Rdtscp.bit() | Trap::Rdseed.bit()), 0);
    }

    #[test]
    fn the_table_names_no_bit_twice_and_filters_to_a_fixed_order() {
        for (i, a) in HIDDEN.iter().enumerate() {
            assert!(!HIDDEN[i + 1..].iter().any(|b| (a.leaf, a.subleaf, a.register, a.bit)
                == (b.leaf, b.subleaf, b.register, b.bit)));
        }
        let forward = filter(&[full(1, 0), full(7, 0), full(0xd, 1)], 0);
        let backward = filter(&[full(0xd, 1), full(7, 0), full(1, 0)], 0);
        assert_eq!(identity_bytes(&forward), identity_bytes(&backward));
    }
}
