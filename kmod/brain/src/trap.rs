// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! The instructions that the module captures, and the general registers that they touch.

/// A captured instruction. The numbers are part of the interface to user space and of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Trap {
    /// RDTSC: EDX:EAX is the virtual TSC.
    Rdtsc = 0,
    /// RDTSCP: the same, and ECX is TSC_AUX.
    Rdtscp = 1,
    /// RDPMC of a legacy counter: EDX:EAX is zero, for no guest can start a counter.
    Rdpmc = 2,
    /// RDRAND: a register gets random bits.
    Rdrand = 3,
    /// RDSEED: the same, of which it is said that they are fit to seed a generator.
    Rdseed = 4,
}

impl Trap {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Rdtsc, Self::Rdtscp, Self::Rdpmc, Self::Rdrand, Self::Rdseed];

    /// The trap of that number.
    #[must_use]
    pub const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Rdtsc),
            1 => Some(Self::Rdtscp),
            2 => Some(Self::Rdpmc),
            3 => Some(Self::Rdrand),
            4 => Some(Self::Rdseed),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its bit in a set of traps.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u8
    }

    /// The instruction's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rdtsc => "RDTSC",
            Self::Rdtscp => "RDTSCP",
            Self::Rdpmc => "RDPMC",
            Self::Rdrand => "RDRAND",
            Self::Rdseed => "RDSEED",
        }
    }

    /// Whether its value is the virtual TSC.
    #[must_use]
    pub const fn reads_tsc(self) -> bool {
        matches!(self, Self::Rdtsc | Self::Rdtscp)
    }

    /// Whether its value is random.
    #[must_use]
    pub const fn is_random(self) -> bool {
        matches!(self, Self::Rdrand | Self::Rdseed)
    }
}

/// The set of all traps. Not every host can capture all of them: see [`super::abi::Info::traps`].
pub const ALL_TRAPS: u32 = (1 << Trap::ALL.len()) - 1;

/// Number of RAX among the general registers, in the order of the instruction encoding, which is KVM's too.
pub const RAX: usize = 0;
/// Number of RCX.
pub const RCX: usize = 1;
/// Number of RDX.
pub const RDX: usize = 2;
/// Number of RSP. VMX keeps it elsewhere while the guest runs: it is not read here, and written only by
/// an instruction that names it.
pub const RSP: usize = 4;

/// Counters that RDPMC can name on every AMD CPU (APM volume 3, RDPMC). Others fault, which KVM does.
pub const LEGACY_COUNTERS: u64 = 4;

/// The general registers of a stopped guest.
pub type Registers = [u64; 16];
