//! A full image of the vCPU's state.
//!
//! Taken when the vCPU stands between two instructions: at a forced stop, and to compare two
//! machines. KVM's structures travel as their bytes; both sides run the same VMM version, which the
//! handshake checks.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use super::msr;

/// All of a vCPU's state.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct VcpuImage {
    /// `kvm_regs`: 16 general registers, RIP, RFLAGS.
    pub regs: Vec<u8>,
    /// `kvm_sregs`: segments, control registers, EFER.
    pub sregs: Vec<u8>,
    /// `kvm_vcpu_events`: what is half-delivered.
    pub events: Vec<u8>,
    /// `kvm_debugregs`.
    pub debug: Vec<u8>,
    /// `kvm_xcrs`.
    pub xcrs: Vec<u8>,
    /// `kvm_xsave`: x87, SSE, AVX state.
    pub xsave: Vec<u8>,
    /// The saved MSRs of [`super::msr::PASSED`], index and value.
    pub msrs: Vec<(u32, u64)>,
    /// What belongs to captured instructions.
    pub captured: CapturedState,
}

/// The state of captured instructions; all zero without the kernel module.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CapturedState {
    /// The virtual TSC last read by the guest.
    pub tsc: u64,
    /// MSR TSC_AUX.
    pub tsc_aux: u64,
    /// Digest of all captured instructions.
    pub digest: u64,
}

/// Why an image could not be taken or loaded.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A KVM call failed.
    #[error("{0} failed")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// A part has the wrong size: it comes from another version.
    #[error("the vCPU image's {part} has {found} bytes, {expected} expected")]
    Size {
        /// Which part.
        part: &'static str,
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// KVM has not all of the MSRs.
    #[error("KVM took {taken} of {wanted} MSRs; the first it refused is {index:#x}")]
    Msrs {
        /// How many it took.
        taken: usize,
        /// How many it should have taken.
        wanted: usize,
        /// The index of the first one refused.
        index: u32,
    },
}

/// KVM structures that are plain integers without padding that matters.
///
/// # Safety
/// Every bit pattern must be a valid value of the type.
unsafe trait Plain: Copy + Default {}
// SAFETY: `#[repr(C)]` structures of integers, all of them.
unsafe impl Plain for kvm_regs {}
// SAFETY: as above.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Plain for kvm_debugregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_xcrs {}

fn bytes<T: Plain>(value: &T) -> Vec<u8> {
    // SAFETY: `Plain` types are integers; KVM zeroes or copies the whole structure, and it started
    // out as `Default`, which bindgen makes by zeroing all bytes.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

fn plain<T: Plain>(part: &'static str, bytes: &[u8]) -> Result<T, ImageError> {
    if bytes.len() != size_of::<T>() {
        return Err(ImageError::Size { part, expected: size_of::<T>(), found: bytes.len() });
    }
    // SAFETY: the length was checked; any bit pattern is valid for `Plain`; the read is unaligned.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// An address bit that every CPU's CR3 has.
const OTHER_CR3: u64 = 1 << 12;

const fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> ImageError {
    move |e| ImageError::Kvm(call, e)
}

impl VcpuImage {
    /// Reads the state of a vCPU that has no unfinished exit.
    ///
    /// # Errors
    /// When KVM fails.
    pub fn capture(fd: &VcpuFd, captured: CapturedState) -> Result<Self, ImageError> {
        let xsave = fd.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?;
        Ok(Self {
            regs: bytes(&fd.get_regs().map_err(kvm("KVM_GET_REGS"))?),
            sregs: bytes(&fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?),
            events: bytes(&fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?),
            debug: bytes(&fd.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?),
            xcrs: bytes(&fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?),
            xsave: xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect(),
            msrs: capture_msrs(fd)?,
            captured,
        })
    }

    /// Loads the state into a vCPU that has no unfinished exit.
    ///
    /// # Errors
    /// When a part has the wrong size, or KVM refuses it.
    pub fn load(&self, fd: &VcpuFd) -> Result<(), ImageError> {
        let mut xsave = kvm_xsave::default();
        let expected = size_of_val(&xsave.region);
        if self.xsave.len() != expected {
            return Err(ImageError::Size { part: "XSAVE area", expected, found: self.xsave.len() });
        }
        for (word, bytes) in xsave.region.iter_mut().zip(self.xsave.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let sregs: kvm_sregs = plain("special registers", &self.sregs)?;
        // Guest memory may have been replaced, with it the page tables. KVM drops the guest's TLB when CR3 changes,
        // and the CR3 to load may well be the present one: so it changes twice.
        let elsewhere = kvm_sregs { cr3: sregs.cr3 ^ OTHER_CR3, ..sregs };
        for sregs in [elsewhere, sregs] {
            fd.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
        }
        fd.set_xcrs(&plain("XCRs", &self.xcrs)?).map_err(kvm("KVM_SET_XCRS"))?;
        // SAFETY: this VMM never enables dynamically sized XSAVE features (AMX), so 4 KiB is all
        // that KVM reads.
        unsafe { fd.set_xsave(&xsave) }.map_err(kvm("KVM_SET_XSAVE"))?;
        load_msrs(fd, &self.msrs)?;
        fd.set_debug_regs(&plain("debug registers", &self.debug)?).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_regs(&plain("registers", &self.regs)?).map_err(kvm("KVM_SET_REGS"))?;
        // Last: KVM_SET_REGS drops a pending exception.
        fd.set_vcpu_events(&plain("events", &self.events)?).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// The general registers.
    ///
    /// # Errors
    /// When the image is from another version.
    pub fn general(&self) -> Result<kvm_regs, ImageError> {
        plain("registers", &self.regs)
    }
}

/// KVM stops a batch at the first register that a CPU model lacks; which those are is the same on both sides
/// (CPUID is part of the identity).
fn capture_msrs(fd: &VcpuFd) -> Result<Vec<(u32, u64)>, ImageError> {
    let mut values = Vec::new();
    let mut wanted: Vec<_> =
        msr::saved().map(|index| kvm_msr_entry { index, ..Default::default() }).collect();
    while let Some(first) = wanted.first() {
        let refused = ImageError::Msrs { taken: 0, wanted: wanted.len(), index: first.index };
        let mut request = Msrs::from_entries(&wanted).map_err(|_| refused)?;
        let taken = fd.get_msrs(&mut request).map_err(kvm("KVM_GET_MSRS"))?.min(wanted.len());
        values.extend(request.as_slice()[..taken].iter().map(|entry| (entry.index, entry.data)));
        // What comes after the one that is lacking.
        wanted.drain(..wanted.len().min(taken + 1));
    }
    Ok(values)
}

fn load_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), ImageError> {
    let entries: Vec<_> =
        values.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let wanted = entries.len();
    let refused =
        |taken: usize| ImageError::Msrs { taken, wanted, index: values.get(taken).map_or(0, |v| v.0) };
    let request = Msrs::from_entries(&entries).map_err(|_| refused(0))?;
    let taken = fd.set_msrs(&request).map_err(kvm("KVM_SET_MSRS"))?;
    if taken == wanted { Ok(()) } else { Err(refused(taken)) }
}
