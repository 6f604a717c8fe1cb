//! The idle doorbell: a page of registers by which ring 3 waits, learns the time, prints, and switches
//! the machine off. Where it is, `tandem.doorbell=` on the command line tells. With
//! `tandem.doorbell_frames=1` the wait also ends when the network device has used a receive buffer, which
//! saves the interrupt, its acknowledgement and so two exits out of four.
//!
//! | offset | access | meaning |
//! |---|---|---|
//! | 0 | read, 8 bytes | waits until an interrupt can be delivered; virtual time in nanoseconds |
//! | 8 | write, 4 bytes | 1: power off, 2: reset |
//! | 16 | write, 1 byte | a character for the console |

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Where it is if the command line says nothing.
const DEFAULT: usize = 0xd00f_f000;

const WAIT: usize = 0;
const POWER: usize = 8;
const CONSOLE: usize = 16;
const POWER_OFF: u32 = 1;

static BASE: AtomicUsize = AtomicUsize::new(DEFAULT);

fn register<T>(offset: usize) -> *mut T {
    (BASE.load(Ordering::Relaxed) + offset) as *mut T
}

/// Says where the doorbell is.
///
/// # Safety
/// `base` is the address of its page, mapped one to one.
pub(crate) unsafe fn set_base(base: u64) {
    BASE.store(base as usize, Ordering::Relaxed);
}

/// Waits for an interrupt. Returns virtual time, in nanoseconds since power-on.
pub(crate) fn wait() -> u64 {
    // SAFETY: BASE is the doorbell's page; the read has no effect on memory but what handlers do.
    unsafe { register::<u64>(WAIT).read_volatile() }
}

/// Switches the machine off.
pub(crate) fn power_off() -> ! {
    loop {
        // SAFETY: BASE is the doorbell's page; nothing runs after this.
        unsafe { register::<u32>(POWER).write_volatile(POWER_OFF) }
    }
}

/// The console. Each byte is an exit from the machine: for few words only.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: BASE is the doorbell's page; the write has no effect on memory.
            unsafe { register::<u8>(CONSOLE).write_volatile(byte) }
        }
        Ok(())
    }
}

/// Prints a line on the console.
macro_rules! print_line {
    ($($arguments:tt)*) => {{
        use core::fmt::Write as _;
        // The console takes everything.
        let _ = $crate::metal::doorbell::Console.write_fmt(format_args!($($arguments)*));
        let _ = $crate::metal::doorbell::Console.write_str("\r\n");
    }};
}
pub(crate) use print_line;
