// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! The interface of `/dev/tandem`: one file for the module and for the VMM.
//!
//! A VMM opens the device once for each vCPU, registers the vCPU by its KVM descriptor, maps the shared area
//! (offset 0, the length that the registration returned), sets a clock and a mode, and runs the vCPU with
//! KVM_RUN as ever. Where the module wants the VMM, KVM_RUN ends in [`PAUSE_EXIT`] and `Control::pause` says
//! why. Closing the descriptor and unmapping the area undoes all.

use core::mem::size_of;

use super::histogram::Kind;
use super::ring::Slot;
use super::sync::{AtomicU32, AtomicU64};

/// Changes whenever anything below does, or the digest. A registration of another version is refused.
pub const VERSION: u32 = 3;

/// The letter of the ioctl numbers.
const LETTER: u32 = 0xf5;

const fn ioctl(direction: u32, number: u32, size: usize) -> u32 {
    // include/uapi/asm-generic/ioctl.h
    direction << 30 | (size as u32) << 16 | LETTER << 8 | number
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// Fills an [`Info`]. Needs no registration.
pub const INFO: u32 = ioctl(READ, 0x40, size_of::<Info>());
/// Registers a vCPU with this descriptor, by a [`Register`]; fills in [`Register::area`].
/// EINVAL: version, sizes or traps; EBADF, ENOTTY: no KVM vCPU; EPERM: another process's VM; EBUSY: this
/// descriptor has a vCPU, or the vCPU runs; EEXIST: the vCPU is registered; EOPNOTSUPP: a vCPU that cannot be
/// captured (in-kernel interrupt controller, nested or encrypted guest); ENXIO: KVM's private layout is not the
/// one that this module was made for; ENOSPC: too many vCPUs.
pub const REGISTER: u32 = ioctl(READ | WRITE, 0x41, size_of::<Register>());
/// Lets the vCPU go: afterwards KVM is as it was. The shared area stays mapped. ENXIO: nothing registered.
pub const UNREGISTER: u32 = ioctl(NONE, 0x42, 0);
/// Sets the virtual TSC by a [`Clock`]. EBUSY: the vCPU runs; EINVAL: an impossible frequency.
pub const SET_CLOCK: u32 = ioctl(WRITE, 0x43, size_of::<Clock>());
/// Sets the mode (`u32`, one of `MODE_…`), and empties both rings. EBUSY: the vCPU runs.
pub const SET_MODE: u32 = ioctl(WRITE, 0x44, size_of::<u32>());
/// Switches exit histograms on (`u32` 1, from zero) or off (0, and keeps them). EBUSY: the vCPU runs.
pub const SET_TRACING: u32 = ioctl(WRITE, 0x45, size_of::<u32>());
/// Reads one histogram: a [`Histogram`] whose `index` says which. ENOENT: no such; EBUSY: the vCPU runs.
pub const HISTOGRAM: u32 = ioctl(READ | WRITE, 0x46, size_of::<Histogram>());

/// What KVM_RUN returns at a pause: KVM_EXIT_TPR_ACCESS, which no vCPU without an in-kernel interrupt
/// controller gives otherwise.
pub const PAUSE_EXIT: u32 = 12;

/// What the module can do here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Info {
    /// [`VERSION`] of the module.
    pub version: u32,
    /// The virtualisation extension: [`ISA_SVM`], [`ISA_VMX`].
    pub isa: u32,
    /// Traps that can be captured on this host, by `Trap::bit`: what its CPU can intercept.
    pub traps: u32,
    /// The host TSC's frequency in kHz.
    pub host_khz: u32,
    /// vCPUs registered now.
    pub vcpus: u32,
    /// Always zero.
    pub reserved: u32,
}

/// [`Info::isa`]: AMD-V.
pub const ISA_SVM: u32 = 2;
/// [`Info::isa`]: VT-x.
pub const ISA_VMX: u32 = 1;

/// A registration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Register {
    /// [`VERSION`].
    pub version: u32,
    /// Size of this structure in bytes.
    pub size: u32,
    /// The vCPU's KVM descriptor.
    pub vcpu_fd: i32,
    /// Traps to capture, by `Trap::bit`; at least one, all of them in [`Info::traps`]. An instruction that the
    /// guest's CPUID hides is not captured: KVM makes it fault.
    pub traps: u32,
    /// Entries of the record ring: a power of two from [`MIN_ENTRIES`] to [`MAX_ENTRIES`].
    pub record_entries: u32,
    /// Entries of the replay ring, likewise.
    pub replay_entries: u32,
    /// Filled in: length of the shared area in bytes, a multiple of the page size.
    pub area: u64,
}

/// Fewest entries of a ring.
pub const MIN_ENTRIES: u32 = 16;
/// Most entries of a ring.
pub const MAX_ENTRIES: u32 = 1 << 16;

/// A setting of the virtual TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Clock {
    /// The guest's frequency in kHz.
    pub guest_khz: u32,
    /// Low bits that always read zero, at most `VirtualTsc::MAX_QUANTUM`.
    pub quantum: u32,
    /// The reading at the moment of the call.
    pub value: u64,
}

/// Mode: nothing is captured; the guest reads the host's TSC natively.
pub const MODE_OFF: u32 = 0;
/// Mode: instructions are served from the virtual TSC and the host's random numbers, and the values recorded.
pub const MODE_RECORD: u32 = 1;
/// Mode: instructions are served from the replay ring.
pub const MODE_REPLAY: u32 = 2;

/// A request for one histogram, and the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Histogram {
    /// Which, from 0.
    pub index: u32,
    /// Always zero.
    pub reserved: u32,
    /// The histogram; a `count` of zero means that there are no more.
    pub kind: Kind,
}

/// Why the vCPU was paused before it executed a captured instruction. KVM_RUN tries it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Pause {
    /// It was not: the vCPU has entered the guest since.
    None = 0,
    /// [`VmmSide::limit`] is reached.
    Limit = 1,
    /// Record: the ring is full.
    Full = 2,
    /// Replay: the ring is empty.
    Empty = 3,
    /// Replay: the ring's next entry is of another instruction. The guest has diverged.
    Diverged = 4,
    /// A ring's index or entry cannot be: the shared area was scribbled on.
    Corrupt = 5,
    /// The module no longer finds KVM's private state where it was; it has let go of the vCPU.
    Layout = 6,
}

impl Pause {
    /// The pause of that number.
    #[must_use]
    pub const fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::Limit,
            2 => Self::Full,
            3 => Self::Empty,
            4 => Self::Diverged,
            5 => Self::Corrupt,
            6 => Self::Layout,
            _ => return None,
        })
    }
}

/// The first page of the shared area. The rings follow: first record, then replay.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Written by the module.
    pub module: ModuleSide,
    /// Written by the VMM.
    pub vmm: VmmSide,
}

/// What the module tells.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct ModuleSide {
    /// Captured instructions served so far, since the registration.
    pub served: AtomicU64,
    /// The virtual TSC last read by the guest.
    pub tsc: AtomicU64,
    /// Entries put into the record ring.
    pub record_tail: AtomicU32,
    /// Entries taken from the replay ring.
    pub replay_head: AtomicU32,
    /// [`Pause`].
    pub pause: AtomicU32,
    /// Number of the trap at the pause.
    pub pause_trap: AtomicU32,
}

/// What the VMM asks.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct VmmSide {
    /// Digest of all captured instructions so far. Folded on by the module; the VMM may set it between runs.
    pub digest: AtomicU64,
    /// What RDTSCP puts in ECX.
    pub tsc_aux: AtomicU64,
    /// How many captured instructions may be served in all, by the count of [`ModuleSide::served`]: at the next
    /// one the vCPU is paused. Zero pauses it at once; [`SET_MODE`] sets the largest number.
    pub limit: AtomicU64,
    /// Entries taken from the record ring.
    pub record_head: AtomicU32,
    /// Entries put into the replay ring.
    pub replay_tail: AtomicU32,
}

/// Bytes of a page, and of what lies before the rings.
pub const PAGE: usize = 4096;

/// Bytes of the shared area for rings of so many entries, if these are allowed.
#[must_use]
pub const fn area_len(record_entries: u32, replay_entries: u32) -> Option<usize> {
    if !entries_fit(record_entries) || !entries_fit(replay_entries) {
        return None;
    }
    let slots = (record_entries as usize + replay_entries as usize) * size_of::<Slot>();
    Some(PAGE + slots.div_ceil(PAGE) * PAGE)
}

const fn entries_fit(entries: u32) -> bool {
    entries.is_power_of_two() && entries >= MIN_ENTRIES && entries <= MAX_ENTRIES
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Slot>() == 16 && size_of::<Control>() == 256 && size_of::<Control>() <= PAGE);
    assert!(size_of::<Register>() == 32 && size_of::<Info>() == 24 && size_of::<Clock>() == 16);
    assert!(size_of::<Kind>() == 280 && size_of::<Histogram>() == 288);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_numbers_are_those_of_the_kernel_s_macros() {
        // _IOR(0xf5, 0x40, 24), _IOWR(0xf5, 0x41, 32), _IO(0xf5, 0x42), _IOW(0xf5, 0x43, 16).
        assert_eq!([INFO, REGISTER, UNREGISTER, SET_CLOCK], [0x8018_f540, 0xc020_f541, 0xf542, 0x4010_f543]);
    }

    #[test]
    fn an_area_has_whole_pages_and_odd_rings_are_refused() {
        assert_eq!(area_len(16, 16), Some(2 * PAGE));
        assert_eq!(area_len(256, 256), Some(3 * PAGE));
        assert_eq!(area_len(MAX_ENTRIES, MAX_ENTRIES), Some(PAGE + 2 * 16 * MAX_ENTRIES as usize));
        for entries in [0, 1, 8, 17, MAX_ENTRIES * 2, u32::MAX] {
            assert_eq!(area_len(entries, 16), None, "{entries}");
            assert_eq!(area_len(16, entries), None, "{entries}");
        }
    }

    #[test]
    fn pauses_have_their_numbers() {
        for number in 0..7 {
            assert_eq!(Pause::of(number).map(|pause| pause as u32), Some(number));
        }
        assert_eq!(Pause::of(7), None);
    }
}
