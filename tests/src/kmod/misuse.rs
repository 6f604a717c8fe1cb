//! Every way to use `/dev/tandem` wrongly gets an errno.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::Kvm;
use tandem_kmod_brain::abi::{self, Clock, Histogram, Info, Register};
use tandem_kmod_brain::trap::{ALL_TRAPS, Trap};
use tandem_vmm::machine::cpu::capture::{CaptureMode, DEVICE};

use super::guest;
use super::trials::Trial;
use super::vm::{Ring, Tiny, all_traps};
use crate::random::Random;

/// All trials.
pub const ALL: &[Trial] = &[
    ("registrations that make no sense are refused", registrations),
    ("a vCPU is registered once, and a descriptor has one vCPU", twice),
    ("descriptors that are no vCPU are refused", descriptors),
    ("vCPUs that cannot be captured are refused", unfit),
    ("nothing works on a descriptor without a vCPU", unbound),
    ("settings that make no sense are refused", settings),
    ("a mapping must be the whole area, shared", mappings),
    ("random ioctls with random arguments do no harm", fuzz),
    ("a scribbling VMM harms only itself", scribble),
];

fn below(random: &mut Random, bound: u64) -> u64 {
    random.within(0..=bound - 1)
}

fn device() -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).open(DEVICE)?)
}

/// The errno of an ioctl, 0 for success.
fn errno<T>(device: &File, command: u32, argument: *mut T) -> i32 {
    // SAFETY: the callers pass pointers to the structure of the number, or none that the kernel could follow.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::c_ulong::from(command), argument) };
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn register(device: &File, mut ask: Register) -> i32 {
    errno(device, abi::REGISTER, &raw mut ask)
}

fn good(vm: &Tiny) -> Result<Register> {
    Ok(Register {
        version: abi::VERSION,
        size: size_of::<Register>() as u32,
        vcpu_fd: vm.vcpu.as_raw_fd(),
        traps: all_traps()?,
        record_entries: 16,
        replay_entries: 16,
        area: 0,
    })
}

fn registrations(system: &Kvm) -> Result<()> {
    let (vm, device) = (Tiny::new(system)?, device()?);
    let good = good(&vm)?;
    let bad = [
        Register { version: abi::VERSION + 1, ..good },
        Register { version: 0, ..good },
        Register { size: 31, ..good },
        Register { traps: 0, ..good },
        Register { traps: ALL_TRAPS << 1, ..good },
        Register { traps: u32::MAX, ..good },
        Register { record_entries: 0, ..good },
        Register { record_entries: 17, ..good },
        Register { replay_entries: 8, ..good },
        Register { replay_entries: abi::MAX_ENTRIES * 2, ..good },
        Register { record_entries: u32::MAX, ..good },
    ];
    for ask in bad {
        let found = register(&device, ask);
        ensure!(found == libc::EINVAL, "errno {found} for {ask:?}");
    }
    for trap in Trap::ALL.into_iter().filter(|trap| good.traps & trap.bit() == 0) {
        let found = register(&device, Register { traps: good.traps | trap.bit(), ..good });
        ensure!(found == libc::EINVAL, "errno {found} for {}, which this CPU cannot intercept", trap.name());
    }
    ensure!(
        errno::<Register>(&device, abi::REGISTER, std::ptr::null_mut()) == libc::EFAULT,
        "a null pointer"
    );
    ensure!(register(&device, good) == 0, "the good one is refused");
    Ok(())
}

fn twice(system: &Kvm) -> Result<()> {
    let (vm, other, one, two) = (Tiny::new(system)?, Tiny::new(system)?, device()?, device()?);
    ensure!(register(&one, good(&vm)?) == 0, "refused");
    ensure!(register(&one, good(&vm)?) == libc::EBUSY, "the same twice");
    ensure!(register(&one, good(&other)?) == libc::EBUSY, "two vCPUs with one descriptor");
    ensure!(register(&two, good(&vm)?) == libc::EEXIST, "one vCPU with two descriptors");
    ensure!(register(&two, good(&other)?) == 0, "the second VM is refused");
    let nothing = std::ptr::null_mut::<u8>();
    ensure!(errno(&one, abi::UNREGISTER, nothing) == 0, "not let go");
    ensure!(errno(&one, abi::UNREGISTER, nothing) == libc::ENXIO, "let go twice");
    ensure!(register(&one, good(&vm)?) == 0, "refused after it was let go");
    Ok(())
}

fn descriptors(system: &Kvm) -> Result<()> {
    let (vm, device) = (Tiny::new(system)?, device()?);
    let vm_fd = system.create_vm()?;
    let null = File::open("/dev/null")?;
    let cases = [
        (-1, libc::EBADF),
        (99_999, libc::EBADF),
        (null.as_raw_fd(), libc::ENOTTY),
        (device.as_raw_fd(), libc::ENOTTY),
        (system.as_raw_fd(), libc::ENOTTY),
        (vm_fd.as_raw_fd(), libc::ENOTTY),
    ];
    for (fd, wanted) in cases {
        let found = register(&device, Register { vcpu_fd: fd, ..good(&vm)? });
        ensure!(found == wanted, "errno {found} instead of {wanted} for descriptor {fd}");
    }
    Ok(())
}

fn unfit(system: &Kvm) -> Result<()> {
    let vm = system.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&split)?;
    let vcpu = vm.create_vcpu(0)?;
    let tiny = Tiny::new(system)?;
    let found = register(&device()?, Register { vcpu_fd: vcpu.as_raw_fd(), ..good(&tiny)? });
    ensure!(found == libc::EOPNOTSUPP, "errno {found} for a vCPU with an in-kernel interrupt controller");

    // A child has the descriptor, but the VM is its parent's.
    let ask = good(&tiny)?;
    // SAFETY: the child makes system calls only and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let found = device().map_or(0, |device| register(&device, ask));
        // SAFETY: ends the child.
        unsafe { libc::_exit(found) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(libc::WEXITSTATUS(status) == libc::EPERM, "errno {} in a child", libc::WEXITSTATUS(status));
    Ok(())
}

fn unbound(_system: &Kvm) -> Result<()> {
    let device = device()?;
    let (mut clock, mut one, mut histogram) = (Clock::default(), 1_u32, Histogram::default());
    ensure!(errno(&device, abi::UNREGISTER, std::ptr::null_mut::<u8>()) == libc::ENXIO, "UNREGISTER");
    ensure!(errno(&device, abi::SET_CLOCK, &raw mut clock) == libc::ENXIO, "SET_CLOCK");
    ensure!(errno(&device, abi::SET_MODE, &raw mut one) == libc::ENXIO, "SET_MODE");
    ensure!(errno(&device, abi::SET_TRACING, &raw mut one) == libc::ENXIO, "SET_TRACING");
    ensure!(errno(&device, abi::HISTOGRAM, &raw mut histogram) == libc::ENXIO, "HISTOGRAM");
    ensure!(
        errno(&device, abi::INFO ^ 0x1000, std::ptr::null_mut::<u8>()) == libc::ENOTTY,
        "an unknown number"
    );
    let mut info = Info::default();
    ensure!(errno(&device, abi::INFO, &raw mut info) == 0 && info.version == abi::VERSION, "INFO");
    ensure!(errno::<Info>(&device, abi::INFO, std::ptr::null_mut()) == libc::EFAULT, "INFO to nowhere");
    // SAFETY: a mapping that is refused.
    let mapped = unsafe {
        libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, device.as_raw_fd(), 0)
    };
    ensure!(
        mapped == libc::MAP_FAILED && io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO),
        "mmap"
    );
    Ok(())
}

fn settings(system: &Kvm) -> Result<()> {
    let (vm, device) = (Tiny::new(system)?, device()?);
    ensure!(register(&device, good(&vm)?) == 0, "refused");
    for (guest_khz, quantum) in [(0, 0), (1, 0), (u32::MAX, 0), (1_000_000, 21), (1_000_000, u32::MAX)] {
        let mut clock = Clock { guest_khz, quantum, value: 0 };
        let found = errno(&device, abi::SET_CLOCK, &raw mut clock);
        // Whether the highest frequency is too high depends on the host's.
        ensure!(
            found == libc::EINVAL || guest_khz == u32::MAX,
            "errno {found} for {guest_khz} kHz, quantum {quantum}"
        );
    }
    for mut mode in [3_u32, u32::MAX] {
        ensure!(errno(&device, abi::SET_MODE, &raw mut mode) == libc::EINVAL, "mode {mode}");
        ensure!(errno(&device, abi::SET_TRACING, &raw mut mode) == libc::EINVAL, "tracing {mode}");
    }
    let mut histogram = Histogram { index: u32::MAX, ..Histogram::default() };
    ensure!(
        errno(&device, abi::HISTOGRAM, &raw mut histogram) == libc::ENOENT,
        "a histogram that is not there"
    );
    Ok(())
}

fn mappings(system: &Kvm) -> Result<()> {
    let (vm, device) = (Tiny::new(system)?, device()?);
    let mut ask = good(&vm)?;
    ensure!(errno(&device, abi::REGISTER, &raw mut ask) == 0, "refused");
    let (len, page) = (ask.area as usize, abi::PAGE);
    let (read, write, exec) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let cases = [
        (len, read | write, libc::MAP_SHARED, 0, true),
        (len, read, libc::MAP_SHARED, 0, true),
        (len + page, read, libc::MAP_SHARED, 0, false),
        (len - page, read, libc::MAP_SHARED, 0, false),
        (len, read, libc::MAP_PRIVATE, 0, false),
        (len, read | exec, libc::MAP_SHARED, 0, false),
        (len, read, libc::MAP_SHARED, page as i64, false),
        (1 << 40, read, libc::MAP_SHARED, 0, false),
    ];
    for (len, protection, flags, offset, wanted) in cases {
        // SAFETY: a mapping of its own.
        let mapped =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, device.as_raw_fd(), offset) };
        let done = mapped != libc::MAP_FAILED;
        ensure!(done == wanted, "mmap of {len:#x} bytes, {protection} {flags} at {offset:#x}");
        if done {
            // SAFETY: the pages outlive registration and device for as long as they are mapped.
            let word = unsafe {
                errno(&device, abi::UNREGISTER, std::ptr::null_mut::<u8>());
                mapped.cast::<u32>().read_volatile()
            };
            ensure!(word == 0, "the area was not empty");
            ensure!(register(&device, good(&vm)?) == 0, "refused again");
            // SAFETY: mapped above.
            unsafe { libc::munmap(mapped, len) };
        }
    }
    Ok(())
}

fn fuzz(system: &Kvm) -> Result<()> {
    let mut random = Random::new(0x7a4d);
    let (mut vm, devices) = (Tiny::new(system)?, [device()?, device()?]);
    let mut bytes = [0_u8; 512];
    for _ in 0..3_000 {
        let device = &devices[below(&mut random, 2) as usize];
        let number = 0x40 + below(&mut random, 8) as u32;
        let known = [
            abi::INFO,
            abi::REGISTER,
            abi::UNREGISTER,
            abi::SET_CLOCK,
            abi::SET_MODE,
            abi::SET_TRACING,
            abi::HISTOGRAM,
        ];
        let command = if below(&mut random, 4) == 0 {
            (below(&mut random, 4) as u32) << 30 | (below(&mut random, 400) as u32) << 16 | 0xf500 | number
        } else {
            known[below(&mut random, known.len() as u64) as usize]
        };
        let mut ask = good(&vm)?;
        match below(&mut random, 8) {
            0 => ask.vcpu_fd = below(&mut random, 40) as i32,
            1 => ask.traps = below(&mut random, 1 << 32) as u32,
            2 => ask.record_entries = 1 << below(&mut random, 32),
            _ => {}
        }
        if below(&mut random, 3) == 0 {
            bytes.fill_with(|| below(&mut random, 256) as u8);
        } else {
            // SAFETY: integers without padding.
            let raw: [u8; 32] = unsafe { std::mem::transmute(ask) };
            bytes[..32].copy_from_slice(&raw);
        }
        let argument = match below(&mut random, 10) {
            0 => std::ptr::null_mut(),
            1 => std::ptr::without_provenance_mut(below(&mut random, u64::MAX) as usize | 1 << 63),
            2 => std::ptr::without_provenance_mut(4096),
            _ => bytes.as_mut_ptr(),
        };
        let _ = errno(device, command, argument);
        if below(&mut random, 200) == 0 {
            vm.start(guest::cpuid(), Ring::User, 3, 0)?;
            vm.finish()?;
        }
    }
    drop(devices);
    vm.register(all_traps()?, 1024, CaptureMode::Record)?;
    vm.start(guest::rdtsc(), Ring::User, 100, 0)?;
    vm.finish()
}

fn scribble(system: &Kvm) -> Result<()> {
    let mut random = Random::new(0x5c1b);
    for round in 0..60 {
        let mut vm = Tiny::new(system)?;
        let mode = if round % 2 == 0 { CaptureMode::Record } else { CaptureMode::Replay };
        let capture_fd = device()?;
        let mut ask = good(&vm)?;
        ensure!(errno(&capture_fd, abi::REGISTER, &raw mut ask) == 0, "refused");
        let mut number = if mode == CaptureMode::Record { abi::MODE_RECORD } else { abi::MODE_REPLAY };
        ensure!(errno(&capture_fd, abi::SET_MODE, &raw mut number) == 0, "no mode");
        let len = ask.area as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping of its own.
        let area = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, capture_fd.as_raw_fd(), 0)
        };
        ensure!(area != libc::MAP_FAILED, "no mapping");
        for _ in 0..8 {
            vm.start(guest::rdtsc(), Ring::User, 50, 0)?;
            for word in 0..len / 8 {
                if below(&mut random, 3) == 0 {
                    // SAFETY: within the mapping.
                    unsafe { area.cast::<u64>().add(word).write_volatile(below(&mut random, u64::MAX)) };
                }
            }
            // Whatever comes of it is this VM's own business.
            let _ = vm.vcpu.run();
        }
        // SAFETY: mapped above.
        unsafe { libc::munmap(area, len) };
    }
    Ok(())
}
