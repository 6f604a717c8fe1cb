//! What happens when the processor or the code gives up: a line on the console, and power off.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::doorbell::{self, print_line};

/// Vector, error code, instruction pointer and CR2 of an exception. Written in ring 0.
pub(super) static FAULT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

pub(super) const FAULT_STACK_SIZE: usize = 16 * 1024;

/// A stack for [`on_fault`]: the fault may be that the other one is full.
#[repr(C, align(16))]
pub(super) struct Stack([core::cell::UnsafeCell<u8>; FAULT_STACK_SIZE]);

// SAFETY: nobody reads or writes it by this name.
unsafe impl Sync for Stack {}

pub(super) static FAULT_STACK: Stack = Stack([const { core::cell::UnsafeCell::new(0) }; FAULT_STACK_SIZE]);

static GIVING_UP: AtomicBool = AtomicBool::new(false);

/// Ring 0 goes on here after an exception, in ring 3. The stack is empty: no return address.
pub(super) extern "C" fn on_fault() -> ! {
    if !GIVING_UP.swap(true, Ordering::Relaxed) {
        let [vector, code, rip, cr2] = [0, 1, 2, 3].map(|index: usize| FAULT[index].load(Ordering::Relaxed));
        print_line!("tandem-guest: exception {vector} (error code {code:#x}) at {rip:#x}, cr2 {cr2:#x}");
    }
    doorbell::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if !GIVING_UP.swap(true, Ordering::Relaxed) {
        print_line!("tandem-guest: {info}");
    }
    doorbell::power_off()
}
