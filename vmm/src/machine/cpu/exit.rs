//! Deterministic exits.

/// Why the vCPU left the guest, at a place that is a function of the guest's past. Host-caused exits
/// (signals, page faults of the host, preemption) are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN or INS: `count` items of `size` bytes from `port`; the answer goes to the vCPU's I/O area.
    PortIn {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// Items of a string instruction, else 1.
        count: u32,
    },
    /// OUT or OUTS.
    PortOut {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// Items of a string instruction, else 1.
        count: u32,
    },
    /// A read outside RAM.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// 1 to 8 bytes.
        size: u8,
    },
    /// A write outside RAM.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// 1 to 8 bytes.
        size: u8,
        /// The bytes, little-endian, upper ones zero.
        data: u64,
    },
    /// HLT.
    Halt,
    /// The guest can take an interrupt again, as was asked for.
    InterruptWindow,
    /// RDMSR outside the passed list.
    MsrRead {
        /// MSR index.
        index: u32,
    },
    /// WRMSR outside the passed list.
    MsrWrite {
        /// MSR index.
        index: u32,
        /// EDX:EAX.
        data: u64,
    },
    /// Triple fault.
    Shutdown,
    /// In front of an instruction that the kernel module captures, where it was told to pause. The instruction
    /// has not happened yet: it is no part of this exit.
    Captured,
}

impl Exit {
    /// Names of the kinds, indexed by [`Exit::kind`].
    pub const KINDS: [&'static str; 10] = [
        "port-in",
        "port-out",
        "mmio-read",
        "mmio-write",
        "halt",
        "interrupt-window",
        "msr-read",
        "msr-write",
        "shutdown",
        "capture-pause",
    ];

    /// A small number for the kind of exit, an index into [`Exit::KINDS`].
    #[must_use]
    pub const fn kind(&self) -> usize {
        match self {
            Self::PortIn { .. } => 0,
            Self::PortOut { .. } => 1,
            Self::MmioRead { .. } => 2,
            Self::MmioWrite { .. } => 3,
            Self::Halt => 4,
            Self::InterruptWindow => 5,
            Self::MsrRead { .. } => 6,
            Self::MsrWrite { .. } => 7,
            Self::Shutdown => 8,
            Self::Captured => 9,
        }
    }

    /// The exit in three words, for the digest: kind and sizes, address, data.
    #[must_use]
    pub const fn words(&self) -> [u64; 3] {
        let kind = self.kind() as u64;
        match *self {
            Self::PortIn { port, size, count } | Self::PortOut { port, size, count } => {
                [kind | (size as u64) << 8 | (count as u64) << 32, port as u64, 0]
            }
            Self::MmioRead { address, size } => [kind | (size as u64) << 8, address, 0],
            Self::MmioWrite { address, size, data } => [kind | (size as u64) << 8, address, data],
            Self::MsrRead { index } => [kind, index as u64, 0],
            Self::MsrWrite { index, data } => [kind, index as u64, data],
            Self::Halt | Self::InterruptWindow | Self::Shutdown | Self::Captured => [kind, 0, 0],
        }
    }
}
