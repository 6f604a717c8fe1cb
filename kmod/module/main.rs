// SPDX-License-Identifier: GPL-2.0-only

//! `tandem.ko`: captures a guest's non-deterministic instructions inside KVM's exit path.
//!
//! KVM calls its tracepoints `kvm_entry` and `kvm_exit` around each world switch, with the vCPU and with
//! interrupts off. At the first, the module makes the hardware intercept RDTSC and its kin for the vCPUs that a
//! VMM has registered; at the second, it serves the instruction and makes KVM take the exit for one that needs
//! nothing further. What it decides is in `../brain`.

use kernel::fs::File;
use kernel::miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration};
use kernel::mm::virt::VmaNew;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::Mutex;
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

#[path = "../brain/src/mod.rs"]
pub mod brain;
mod registration;
mod shim;
mod traces;

use brain::abi;
use registration::{REGISTERED, Registration};
use traces::Trace;

module! {
    type: TandemModule,
    name: "tandem",
    authors: ["The Tandem authors"],
    description: "Captures non-deterministic instructions of KVM guests",
    license: "GPL",
}

#[pin_data]
struct TandemModule {
    #[pin]
    _device: MiscDeviceRegistration<Device>,
    _traces: traces::Root,
}

impl kernel::InPlaceModule for TandemModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: once, and before the device that uses it is there.
        unsafe { REGISTERED.init() };
        let options = MiscDeviceOptions { name: c"tandem" };
        try_pin_init!(Self {
            _: {
                let isa = isa()?;
                if !shim::tandem_layout_known() {
                    return Err(ENODEV);
                }
                if shim::tandem_host_khz() == 0 {
                    pr_err!("the host's TSC has no known frequency\n");
                    return Err(ENODEV);
                }
                pr_info!("interface {}, virtualisation extension {}\n", abi::VERSION, isa.number);
            },
            // SAFETY: as above.
            _traces: unsafe { traces::Root::new() },
            _device <- MiscDeviceRegistration::register(options),
        })
    }
}

/// The virtualisation extension of this host.
fn isa() -> Result<&'static shim::Isa> {
    // SAFETY: a constant of the C side, or null.
    unsafe { shim::tandem_find_isa().as_ref() }.ok_or_else(|| {
        pr_err!("this CPU has neither AMD-V nor VT-x\n");
        ENODEV
    })
}

/// An open `/dev/tandem`.
#[pin_data]
struct Device {
    /// Never held while user memory is touched: `mmap` comes with the memory lock that a page fault takes.
    #[pin]
    vcpu: Mutex<Option<KBox<Registration>>>,
    /// Its histograms in debugfs, once they were asked for. Taken before `vcpu`, never after it.
    #[pin]
    trace: Mutex<Option<Trace>>,
}

/// What ioctls carry.
macro_rules! plain {
    ($($name:ty),*) => {$(
        // SAFETY: integers only, without padding: their sizes are asserted in abi.rs.
        unsafe impl FromBytes for $name {}
        // SAFETY: as above.
        unsafe impl AsBytes for $name {}
    )*};
}

plain!(abi::Info, abi::Register, abi::Clock, abi::Histogram);

#[vtable]
impl MiscDevice for Device {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Pin<KBox<Self>>> {
        KBox::try_pin_init(try_pin_init!(Self { vcpu <- new_mutex!(None), trace <- new_mutex!(None) }), GFP_KERNEL)
    }

    fn mmap(me: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        me.vcpu.lock().as_ref().ok_or(ENXIO)?.map(vma.as_ptr().cast())
    }

    fn ioctl(me: Pin<&Self>, _file: &File, command: u32, argument: usize) -> Result<isize> {
        let user = UserPtr::from_addr(argument);
        match command {
            abi::INFO => write(user, &info()?)?,
            abi::REGISTER => {
                let mut ask: abi::Register = read(user)?;
                ask.area = me.register(&ask)?;
                if let Err(error) = write(user, &ask) {
                    drop(me.unregister());
                    return Err(error);
                }
            }
            abi::UNREGISTER => {
                drop(me.unregister().ok_or(ENXIO)?);
            }
            abi::SET_CLOCK => {
                let ask: abi::Clock = read(user)?;
                me.with_vcpu(|vcpu| vcpu.set_clock(&ask))?;
            }
            abi::SET_MODE => {
                let mode: u32 = read(user)?;
                me.with_vcpu(|vcpu| vcpu.set_mode(mode))?;
            }
            abi::SET_TRACING => {
                let on: u32 = read(user)?;
                if on > 1 {
                    return Err(EINVAL);
                }
                me.set_tracing(on == 1)?;
            }
            abi::HISTOGRAM => {
                let mut ask: abi::Histogram = read(user)?;
                ask.reserved = 0;
                ask.kind = me.with_vcpu(|vcpu| vcpu.histogram(ask.index))?;
                write(user, &ask)?;
            }
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

impl Device {
    fn with_vcpu<T>(&self, act: impl FnOnce(&Registration) -> Result<T>) -> Result<T> {
        act(self.vcpu.lock().as_ref().ok_or(ENXIO)?)
    }

    /// Takes the registration out, to be dropped without the lock, and what shows its histograms away.
    fn unregister(&self) -> Option<KBox<Registration>> {
        let registration = self.vcpu.lock().take();
        let trace = self.trace.lock().take();
        drop(trace);
        registration
    }

    /// Switches histograms on or off, and shows them.
    fn set_tracing(&self, on: bool) -> Result {
        let mut trace = self.trace.lock();
        let kinds = self.with_vcpu(|vcpu| vcpu.set_tracing(on))?;
        if let (None, Some(kinds)) = (trace.as_ref(), kinds) {
            *trace = Some(traces::show(kinds)?);
        }
        Ok(())
    }

    /// Registers; gives the length of the shared area.
    fn register(&self, ask: &abi::Register) -> Result<u64> {
        let isa = isa()?;
        if ask.version != abi::VERSION
            || ask.size as usize != core::mem::size_of::<abi::Register>()
            || ask.traps == 0
            || ask.traps & !isa.traps() != 0
        {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu.lock();
        if vcpu.is_some() {
            return Err(EBUSY);
        }
        let registration = Registration::new(isa, ask)?;
        let area = registration.area_len() as u64;
        *vcpu = Some(registration);
        Ok(area)
    }
}

fn info() -> Result<abi::Info> {
    let isa = isa()?;
    Ok(abi::Info {
        version: abi::VERSION,
        isa: isa.number,
        traps: isa.traps(),
        host_khz: shim::tandem_host_khz(),
        vcpus: *REGISTERED.lock(),
        reserved: 0,
    })
}

fn read<T: FromBytes>(from: UserPtr) -> Result<T> {
    UserSlice::new(from, core::mem::size_of::<T>()).reader().read()
}

fn write<T: AsBytes>(to: UserPtr, value: &T) -> Result {
    UserSlice::new(to, core::mem::size_of::<T>()).writer().write(value)
}
