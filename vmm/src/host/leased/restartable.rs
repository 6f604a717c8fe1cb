//! A system call that happens at once after a look, or not at all: a restartable sequence (rseq(2), Linux 4.18).
//!
//! Between a look at the lease and the system call that lets an output out, a thread can be stopped for any time: by SIGSTOP, the
//! freezer of a cgroup, or for want of a core. The kernel knows when it has taken a thread off its core, and tells it by the thread's
//! `struct rseq`, which glibc (2.35) registers. Its pointer to a critical section is set *before* the look. If the
//! thread is interrupted by the scheduler or a signal from then on,
//!
//! - outside the section, the kernel clears the pointer, and the section's first instruction finds that;
//! - inside the section, the kernel moves the thread to the section's abort handler.
//!
//! The section ends with the `syscall` instruction. A thread that is interrupted in front of it is still inside; once in
//! the kernel, its instruction pointer is behind it, and the call goes on. (System calls inside a section are forbidden, by which the
//! kernel means a return into one: `rseq_syscall` compares the same pointer.)

use std::arch::global_asm;
use std::cell::Cell;
use std::ffi::CStr;
use std::ptr;
use std::sync::OnceLock;

/// `offsetof(struct rseq, rseq_cs)`, `include/uapi/linux/rseq.h`.
const SECTION_POINTER: isize = 8;

/// What an aborted section returns: no system call does (an error is -4095 at the lowest).
const ABORTED: i64 = i64::MIN;

/// A system call's number and arguments.
pub(super) type Call = [u64; 7];

global_asm!(
    // struct rseq_cs: version, flags, start, length, abort handler.
    ".pushsection .data.rel.ro.tandem_leased, \"aw\", @progbits",
    ".balign 32",
    ".globl tandem_leased_section",
    ".hidden tandem_leased_section",
    "tandem_leased_section:",
    ".long 0, 0",
    ".quad .Ltandem_leased_start, .Ltandem_leased_end - .Ltandem_leased_start, .Ltandem_leased_abort",
    ".popsection",
    ".pushsection .text.tandem_leased, \"ax\", @progbits",
    ".globl tandem_leased_call",
    ".hidden tandem_leased_call",
    ".type tandem_leased_call, @function",
    "tandem_leased_call:",
    "mov rcx, rsi",
    "mov rax, [rdi]",
    "mov rsi, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov r10, [rdi + 32]",
    "mov r8, [rdi + 40]",
    "mov r9, [rdi + 48]",
    "mov rdi, [rdi + 8]",
    "lea r11, [rip + tandem_leased_section]",
    ".Ltandem_leased_start:",
    "cmp [rcx], r11",
    "jne .Ltandem_leased_abort",
    "syscall",
    ".Ltandem_leased_end:",
    "ret",
    // The kernel wants the signature that glibc registered in front of the handler: in an instruction that traps (ud1).
    ".byte 0x0f, 0xb9, 0x3d",
    ".long 0x53053053",
    ".Ltandem_leased_abort:",
    "movabs rax, 0x8000000000000000",
    "ret",
    ".size tandem_leased_call, . - tandem_leased_call",
    ".popsection",
);

unsafe extern "C" {
    static tandem_leased_section: u8;

    /// Makes the call if `*pointer` still names the section.
    fn tandem_leased_call(call: *const Call, pointer: *mut u64) -> i64;
}

/// Whether this process has restartable sequences.
pub(super) fn are_to_be_had() -> bool {
    offset().is_some()
}

/// Where a thread's `struct rseq` is, from its thread pointer; `None`: this C library or this kernel has none, or
/// the tunable `glibc.pthread.rseq` switched it off.
fn offset() -> Option<isize> {
    static OFFSET: OnceLock<Option<isize>> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        let find = |name: &CStr| {
            // SAFETY: the name is a string; looking for a symbol changes nothing.
            let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        let (offset, size) = (find(c"__rseq_offset")?, find(c"__rseq_size")?);
        // SAFETY: glibc's `const ptrdiff_t __rseq_offset` and `const unsigned int __rseq_size`.
        let (offset, size) = unsafe { (*offset.cast::<isize>(), *size.cast::<u32>()) };
        (size > 0).then_some(offset)
    })
}

/// This thread's pointer to a critical section.
fn section_pointer() -> Option<*mut u64> {
    thread_local! {
        static POINTER: Cell<Option<*mut u64>> = const { Cell::new(None) };
    }
    POINTER.with(|pointer| {
        if pointer.get().is_none() {
            let base: *mut u8;
            // SAFETY: the first word at the thread pointer is the thread pointer (ELF TLS ABI for x86-64).
            unsafe {
                std::arch::asm!("mov {}, fs:[0]", out(reg) base, options(nostack, readonly, preserves_flags));
            }
            pointer.set(offset().map(|offset| base.wrapping_offset(offset + SECTION_POINTER).cast()));
        }
        pointer.get()
    })
}

/// Makes a system call at once after `look` said so, or not at all: if this thread is interrupted in between, `look` is asked again.
/// `None`: `look` said no. Otherwise what it said, and what the kernel did: a negative number is an error. Where there are no
/// restartable sequences, an interrupted call is made late.
///
/// # Safety
/// The call must be one that this process may make, and its pointers must be good for it.
pub(super) unsafe fn call<T>(call: &Call, mut look: impl FnMut() -> Option<T>) -> Option<(T, i64)> {
    let Some(pointer) = section_pointer() else {
        let looked = look()?;
        let [number, a, b, c, d, e, f] = *call;
        // SAFETY: the caller's promise.
        let done = unsafe { libc::syscall(number as i64, a, b, c, d, e, f) };
        // The C library puts the number of an error elsewhere.
        let error = || -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
        return Some((looked, if done == -1 { error() } else { done }));
    };
    loop {
        // SAFETY: this thread's own word, which the kernel reads and clears; the section is never unloaded.
        unsafe { ptr::write_volatile(pointer, (&raw const tandem_leased_section).addr() as u64) };
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        let looked = look()?;
        // SAFETY: the caller's promise; the pointer is this thread's.
        let done = unsafe { tandem_leased_call(call, pointer) };
        if done != ABORTED {
            return Some((looked, done));
        }
    }
}
