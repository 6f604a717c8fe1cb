//! memcpy and its kin, which the compiler calls by name.
//!
//! Short copies, which are most of them, are done by a pair of loads and stores that overlap in the
//! middle; long ones by the processor's string instructions.

use core::arch::asm;

/// From this length on, the string instructions' start-up cost is paid back.
const LONG: usize = 256;

/// Copies `len` bytes in words of type `T`, the last one overlapping the one before. All words are loaded
/// before the first is stored if there are two or fewer.
///
/// # Safety
/// As for memcpy, and `len` is between one and two words.
#[inline(always)]
unsafe fn two<T: Copy>(to: *mut u8, from: *const u8, len: usize) {
    let last = len - size_of::<T>();
    // SAFETY: both words lie inside the first `len` bytes.
    unsafe {
        let first_word = from.cast::<T>().read_unaligned();
        let last_word = from.add(last).cast::<T>().read_unaligned();
        to.cast::<T>().write_unaligned(first_word);
        to.add(last).cast::<T>().write_unaligned(last_word);
    }
}

type Word = core::arch::x86_64::__m128i;

/// # Safety
/// As for memmove; `len` is 32 at most.
#[inline(always)]
unsafe fn short(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: each case copies exactly `len` bytes, loading all of them before storing any.
    unsafe {
        match len {
            16.. => two::<Word>(to, from, len),
            8..16 => two::<u64>(to, from, len),
            4..8 => two::<u32>(to, from, len),
            2..4 => two::<u16>(to, from, len),
            1 => *to = *from,
            0 => {}
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: by the contract of memcpy.
    unsafe {
        if len <= 32 {
            short(to, from, len);
        } else if len < LONG {
            let mut at = 0;
            while at < len - 16 {
                to.add(at).cast::<Word>().write_unaligned(from.add(at).cast::<Word>().read_unaligned());
                at += 16;
            }
            let last = len - 16;
            to.add(last).cast::<Word>().write_unaligned(from.add(last).cast::<Word>().read_unaligned());
        } else {
            asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
                 options(nostack, preserves_flags));
        }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: by the contract of memmove. Backwards only if the end of `from` would be overwritten.
    unsafe {
        if len <= 32 {
            short(to, from, len);
        } else if (to as usize).wrapping_sub(from as usize) >= len {
            asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
                 options(nostack, preserves_flags));
        } else {
            // In words from the end; the first, which may overlap the second, is loaded before any store.
            let first = from.cast::<Word>().read_unaligned();
            let mut at = len;
            while at > 16 {
                at -= 16;
                to.add(at).cast::<Word>().write_unaligned(from.add(at).cast::<Word>().read_unaligned());
            }
            to.cast::<Word>().write_unaligned(first);
        }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: by the contract of memset.
    unsafe {
        if len < 32 {
            let mut at = 0;
            while at < len {
                to.add(at).write_volatile(value as u8);
                at += 1;
            }
        } else {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8,
                 options(nostack, preserves_flags));
        }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    let mut at = 0;
    // SAFETY: by the contract of memcmp, all offsets below `len` can be read.
    unsafe {
        while at + 8 <= len {
            let a = left.add(at).cast::<u64>().read_unaligned();
            let b = right.add(at).cast::<u64>().read_unaligned();
            if a != b {
                return if a.swap_bytes() < b.swap_bytes() { -1 } else { 1 };
            }
            at += 8;
        }
        while at < len {
            let (a, b) = (*left.add(at), *right.add(at));
            if a != b {
                return i32::from(a) - i32::from(b);
            }
            at += 1;
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, len) }
}
