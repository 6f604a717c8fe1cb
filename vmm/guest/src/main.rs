//! The embedded guest: a Redis server on bare metal.
//!
//! Ring 0 is a few instructions of assembly (see `metal::entry`); everything else, this loop included,
//! runs in ring 3, where any KVM runs it at native speed.
#![no_std]
#![no_main]

extern crate alloc;

mod metal;

use metal::doorbell::print_line;
use metal::interrupts::{Line, TIMER};
use metal::mmio::Mmio;
use metal::{doorbell, heap};
use smoltcp::wire::{Ipv4Address, Ipv4Cidr};
use tandem_guest::boot::{CommandLine, MmioDevice, ZERO_PAGE_SIZE, ZeroPage};
use tandem_guest::command::Engine;
use tandem_guest::server::{PORT, Server, Settings};
use tandem_guest::virtio::net::{Net, is_network};

/// Nanoseconds from one tick of the timer to the next.
const TICK: u64 = 10_000_000;

/// Memory above this is not used: the identity map ends at 4 GiB, and devices lie below that.
const RAM_END: u64 = 3 << 30;

/// Longest command line, in bytes.
const COMMAND_LINE_MOST: usize = 4096;

unsafe extern "C" {
    static __bss_end: u8;
}

/// What the boot loader said, taken out of memory that the heap will overwrite.
struct Boot {
    devices: [Option<MmioDevice>; 16],
    address: Option<Ipv4Cidr>,
    gateway: Option<Ipv4Address>,
    seed: u64,
    ram_end: u64,
    /// The doorbell also returns when frames have arrived: no interrupts are needed for them.
    frames_ring: bool,
}

/// Ring 3 begins here.
///
/// # Safety
/// `zero_page` is the address of `struct boot_params`, and all memory is mapped one to one.
unsafe extern "C" fn start(zero_page: *const [u8; ZERO_PAGE_SIZE]) -> ! {
    // SAFETY: by the promise made to this function, and nothing was allocated yet.
    let boot = unsafe { read_boot(zero_page) };
    let heap_start = (&raw const __bss_end) as usize;
    // SAFETY: from the end of the image to the end of the RAM region around it; what the boot loader put
    // there was read.
    let claimed = unsafe { heap::claim(heap_start, boot.ram_end as usize) };
    assert!(claimed, "no memory behind the image: give the machine at least 16 MiB");
    run(&boot)
}

/// # Safety
/// As for [`start`].
unsafe fn read_boot(zero_page: *const [u8; ZERO_PAGE_SIZE]) -> Boot {
    // SAFETY: by the promise made to `start`.
    let zero_page = ZeroPage(unsafe { &*zero_page });
    let line = match zero_page.command_line() {
        0 => "",
        // SAFETY: the boot protocol says that a command line lies there and ends with a zero byte.
        address => unsafe { text_at(address as usize as *const u8) },
    };
    let line = CommandLine(line);
    if let Some(base) = line.number("tandem.doorbell") {
        // SAFETY: so the command line says.
        unsafe { doorbell::set_base(base) };
    }
    let read = |address: u64, buffer: &mut [u8]| {
        let readable = (4096..RAM_END).contains(&address);
        if readable {
            let from = address as usize as *const u8;
            // SAFETY: mapped memory, which nobody writes to now.
            unsafe { from.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
        }
        readable
    };
    let mut devices = [None; 16];
    for (place, device) in devices.iter_mut().zip(line.devices()) {
        *place = Some(device);
    }
    let image = (&raw const __bss_end) as u64;
    Boot {
        devices,
        address: line.address(),
        gateway: line.gateway(),
        seed: zero_page.seed(read).unwrap_or(0x7461_6e64_656d),
        frames_ring: line.number("tandem.doorbell_frames") == Some(1),
        ram_end: zero_page.ram_around(image).map_or(0, |region| region.end.min(RAM_END)),
    }
}

/// The text that starts there and ends before a zero byte, if it is UTF-8.
///
/// # Safety
/// There is one, or at least [`COMMAND_LINE_MOST`] bytes of memory that live as long as `'a`.
unsafe fn text_at<'a>(start: *const u8) -> &'a str {
    // SAFETY: by the promise made to this function.
    let bytes = unsafe {
        let len = (0..COMMAND_LINE_MOST).take_while(|&at| *start.add(at) != 0).count();
        core::slice::from_raw_parts(start, len)
    };
    core::str::from_utf8(bytes).unwrap_or_default()
}

/// Virtual time, as last read at the doorbell. While the guest is too busy to wait there, the timer's ticks
/// stand in.
struct Clock {
    nanos: u64,
    ticks: Line,
}

impl Clock {
    fn set(&mut self, nanos: u64) {
        self.nanos = self.nanos.max(nanos);
        self.ticks.forget();
    }

    fn now(&mut self) -> u64 {
        // The first tick may come right after the reading.
        let fired = self.ticks.fired();
        if fired > 1 {
            self.set(self.nanos + u64::from(fired - 1) * TICK);
        }
        self.nanos
    }
}

fn run(boot: &Boot) -> ! {
    let Some(address) = boot.address else {
        panic!("no address: add ip=ADDRESS/PREFIX to the command line");
    };
    let (device, registers) = boot
        .devices
        .iter()
        .flatten()
        // SAFETY: so the command line says.
        .map(|device| (device, unsafe { Mmio::new(device.base) }))
        .find(|(_, registers)| is_network(registers))
        .unwrap_or_else(|| panic!("no virtio network device named on the command line"));
    let mut net = Net::start(registers).unwrap_or_else(|reason| panic!("{}", reason.message()));
    let mut interrupts = Line::new(device.irq);

    let memory = heap::memory();
    let settings = Settings {
        mac: net.mac(),
        address,
        gateway: boot.gateway,
        seed: boot.seed,
        ..sized_for(memory.free)
    };
    let mut server = Server::new(&settings, &mut net, Engine::with_memory(heap::memory));
    print_line!(
        "tandem-guest: Redis at {}:{PORT}, {} KiB free",
        address.address(),
        heap::memory().free / 1024
    );

    let mut clock = Clock { nanos: 0, ticks: Line::new(TIMER) };
    loop {
        if interrupts.fired() > 0 {
            // Before the queues are looked at: what is used from now on raises the line again.
            interrupts.forget();
            net.acknowledge();
        }
        server.poll(clock.now(), &mut net);
        net.flush();
        if server.engine().power_off() {
            doorbell::power_off();
        }
        if net.is_ready() {
            continue;
        }
        if boot.frames_ring && net.can_send() {
            clock.set(doorbell::wait());
            continue;
        }
        net.arm();
        if !net.is_ready() {
            clock.set(doorbell::wait());
        }
        net.disarm();
    }
}

/// How many sockets, and how large: a sixth of the heap at most.
fn sized_for(heap: usize) -> Settings {
    const SOCKETS: usize = 160;
    let share = heap / 6 / SOCKETS / 2;
    let buffer = (1 << share.max(1).ilog2()).clamp(2048, 32 * 1024);
    Settings {
        mac: [0; 6],
        address: Ipv4Cidr::new(Ipv4Address::UNSPECIFIED, 0),
        gateway: None,
        sockets: SOCKETS,
        buffer,
        seed: 0,
    }
}
