//! The guest's programs, in its own machine code: 64-bit, in ring 0 or ring 3.
//!
//! Each begins with RDI at the results and RSI a count, and ends with OUT to port [`DONE`]. The handlers at
//! `symbol` `fault` and `interrupt` write what they were entered with and end the program too.

use std::arch::global_asm;

/// The port at which a program ends.
pub const DONE: u16 = 0xf4;
/// What the interrupt handler writes to [`DONE`].
pub const BY_INTERRUPT: u8 = 1;
/// What the handler of #DB, #UD, #GP and #PF writes to [`DONE`].
pub const BY_FAULT: u8 = 2;

global_asm!(
    ".pushsection .rodata.tandem_kmod_guest, \"a\"",
    ".balign 16",
    ".global tandem_kmod_guest_begin",
    "tandem_kmod_guest_begin:",
    // RSI times RDTSC.
    ".global tandem_kmod_guest_rdtsc",
    "tandem_kmod_guest_rdtsc:",
    "2: rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rdi], rax",
    "add rdi, 8",
    "dec rsi",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
    // RSI times RDTSCP, its AUX in between.
    ".global tandem_kmod_guest_rdtscp",
    "tandem_kmod_guest_rdtscp:",
    "2: rdtscp",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "add rdi, 16",
    "dec rsi",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
    // All three, with a port read in between now and then.
    ".global tandem_kmod_guest_mixed",
    "tandem_kmod_guest_mixed:",
    "2: rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rdi], rax",
    "rdtscp",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rdi + 8], rax",
    "xor ecx, ecx",
    "mov rax, -1",
    "mov rdx, -1",
    "rdpmc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rdi + 16], rax",
    "add rdi, 24",
    "test esi, 15",
    "jnz 3f",
    "in al, 0x60",
    "3: dec rsi",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
    // Without end and without a trace: for pauses, kicks and kills.
    ".global tandem_kmod_guest_spin",
    "tandem_kmod_guest_spin:",
    "2: rdtsc",
    "mov [rdi], eax",
    "jmp 2b",
    // The shadow of STI covers the instruction after it.
    ".global tandem_kmod_guest_sti",
    "tandem_kmod_guest_sti:",
    "cli",
    "mov rax, -1",
    "mov rdx, rax",
    "sti",
    "rdtsc",
    ".global tandem_kmod_guest_after_sti",
    "tandem_kmod_guest_after_sti:",
    "nop",
    "nop",
    "xor eax, eax",
    "out 0xf4, al",
    // So does that of MOV SS.
    ".global tandem_kmod_guest_mov_ss",
    "tandem_kmod_guest_mov_ss:",
    "mov ax, ss",
    "mov ss, ax",
    "rdtsc",
    ".global tandem_kmod_guest_after_mov_ss",
    "tandem_kmod_guest_after_mov_ss:",
    "nop",
    "nop",
    "xor eax, eax",
    "out 0xf4, al",
    // Prefixes that change nothing but the length.
    ".global tandem_kmod_guest_prefixes",
    "tandem_kmod_guest_prefixes:",
    ".byte 0x66, 0x0f, 0x31",
    "mov [rdi], eax",
    ".byte 0xf3, 0x0f, 0x31",
    "mov [rdi + 8], eax",
    ".byte 0x48, 0x0f, 0x31",
    "mov [rdi + 16], eax",
    ".byte 0x2e, 0x66, 0x0f, 0x31",
    "mov [rdi + 24], eax",
    "xor eax, eax",
    "out 0xf4, al",
    // Single-stepped by the guest itself: #DB comes after RDTSC, once.
    ".global tandem_kmod_guest_step",
    "tandem_kmod_guest_step:",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "rdtsc",
    ".global tandem_kmod_guest_after_step",
    "tandem_kmod_guest_after_step:",
    "nop",
    "xor eax, eax",
    "out 0xf4, al",
    // A counter that no CPU has.
    ".global tandem_kmod_guest_bad_rdpmc",
    "tandem_kmod_guest_bad_rdpmc:",
    "mov ecx, 0x1234",
    "rdpmc",
    "xor eax, eax",
    "out 0xf4, al",
    // A counter there is; a fault in ring 3 unless CR4.PCE allows it.
    ".global tandem_kmod_guest_rdpmc",
    "tandem_kmod_guest_rdpmc:",
    "xor ecx, ecx",
    "rdpmc",
    "xor eax, eax",
    "out 0xf4, al",
    // A bare exit that KVM serves in the kernel.
    ".global tandem_kmod_guest_cpuid",
    "tandem_kmod_guest_cpuid:",
    "2: mov eax, 0x40000000",
    "cpuid",
    "dec rsi",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
    // The same loop around RDTSC.
    ".global tandem_kmod_guest_tight",
    "tandem_kmod_guest_tight:",
    "2: mov eax, 0x40000000",
    "rdtsc",
    "dec rsi",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
    // Jumps to RAX: to the edge of a page.
    ".global tandem_kmod_guest_jump",
    "tandem_kmod_guest_jump:",
    "jmp rax",
    // The other side of that edge.
    ".global tandem_kmod_guest_landing",
    "tandem_kmod_guest_landing:",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rdi], rax",
    "xor eax, eax",
    "out 0xf4, al",
    // Handlers: the interrupted RIP to 0x8000, RAX to 0x8008.
    ".global tandem_kmod_guest_interrupt",
    "tandem_kmod_guest_interrupt:",
    "mov [0x8008], rax",
    "mov rax, [rsp]",
    "mov [0x8000], rax",
    "mov al, 1",
    "out 0xf4, al",
    // #DB and #UD push no error code.
    ".global tandem_kmod_guest_fault",
    "tandem_kmod_guest_fault:",
    "mov [0x8008], rax",
    "mov rax, [rsp]",
    "mov [0x8000], rax",
    "mov al, 2",
    "out 0xf4, al",
    // #GP and #PF do.
    ".global tandem_kmod_guest_fault_with_code",
    "tandem_kmod_guest_fault_with_code:",
    "mov [0x8008], rax",
    "mov rax, [rsp + 8]",
    "mov [0x8000], rax",
    "mov al, 2",
    "out 0xf4, al",
    ".global tandem_kmod_guest_end",
    "tandem_kmod_guest_end:",
    ".popsection",
);

macro_rules! symbols {
    ($($(#[$doc:meta])* $function:ident = $symbol:ident;)*) => {
        unsafe extern "C" {
            $(static $symbol: u8;)*
        }
        $($(#[$doc])* #[must_use] pub fn $function() -> u64 {
            offset(&raw const $symbol)
        })*
    };
}

unsafe extern "C" {
    static tandem_kmod_guest_begin: u8;
    static tandem_kmod_guest_end: u8;
}

/// Where the code lies in the guest.
pub const CODE: u64 = 0x1000;
/// Where the handlers write the interrupted RIP, and after it RAX.
pub const CAUGHT: u64 = 0x8000;

fn offset(symbol: *const u8) -> u64 {
    CODE + (symbol.addr() - (&raw const tandem_kmod_guest_begin).addr()) as u64
}

/// All of the code.
#[must_use]
pub fn code() -> &'static [u8] {
    let begin = &raw const tandem_kmod_guest_begin;
    let len = (&raw const tandem_kmod_guest_end).addr() - begin.addr();
    // SAFETY: both symbols enclose the constant section written above.
    unsafe { std::slice::from_raw_parts(begin, len) }
}

symbols! {
    /// Reads the TSC RSI times.
    rdtsc = tandem_kmod_guest_rdtsc;
    /// The same by RDTSCP.
    rdtscp = tandem_kmod_guest_rdtscp;
    /// RDTSC, RDTSCP and RDPMC in turn, RSI times, and a port read each sixteenth time.
    mixed = tandem_kmod_guest_mixed;
    /// Reads the TSC for ever.
    spin = tandem_kmod_guest_spin;
    /// Reads the TSC in the shadow of STI.
    sti = tandem_kmod_guest_sti;
    /// The instruction after that.
    after_sti = tandem_kmod_guest_after_sti;
    /// Reads the TSC in the shadow of MOV SS.
    mov_ss = tandem_kmod_guest_mov_ss;
    /// The instruction after that.
    after_mov_ss = tandem_kmod_guest_after_mov_ss;
    /// Reads the TSC by four encodings.
    prefixes = tandem_kmod_guest_prefixes;
    /// Reads the TSC with RFLAGS.TF set.
    step = tandem_kmod_guest_step;
    /// The instruction after that.
    after_step = tandem_kmod_guest_after_step;
    /// Reads a counter that there is not.
    bad_rdpmc = tandem_kmod_guest_bad_rdpmc;
    /// Reads counter 0.
    rdpmc = tandem_kmod_guest_rdpmc;
    /// Executes CPUID RSI times.
    cpuid = tandem_kmod_guest_cpuid;
    /// Executes RDTSC RSI times, in the same loop.
    tight = tandem_kmod_guest_tight;
    /// Jumps to RAX.
    jump = tandem_kmod_guest_jump;
    /// What a page's edge leads to: stores EDX:EAX.
    landing = tandem_kmod_guest_landing;
    /// The handler of interrupts.
    interrupt = tandem_kmod_guest_interrupt;
    /// The handler of exceptions without an error code.
    fault = tandem_kmod_guest_fault;
    /// The handler of exceptions with one.
    fault_with_code = tandem_kmod_guest_fault_with_code;
}
