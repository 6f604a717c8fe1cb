//! The guest code of the probes, in one blob that is copied to [`BLOB`] in guest memory.
//!
//! Every snippet tells the host what it found by a store to [`MMIO`] (ring 3) or an `out` to a port
//! (ring 0), so that no snippet needs to know another.

use std::arch::global_asm;

/// Guest-physical address of the blob.
pub(super) const BLOB: u64 = 0x1_0000;
/// Guest-physical address without memory behind it; accesses to it exit to the host.
pub(super) const MMIO: u64 = 0x20_0000;
/// A word that the interrupt handler sets to one.
pub(super) const INTERRUPTED: u64 = 0xc000;
/// Two pages that the dirty-log snippet writes to, one after the other.
pub(super) const DIRTIED: [u64; 2] = [0xd000, 0xe000];
/// A 16-byte aligned scratch word.
pub(super) const SCRATCH: u64 = 0xf000;
/// Port of a finding.
pub(super) const FOUND: u16 = 0x10;
/// Port on which an exception handler sends its vector.
pub(super) const EXCEPTION: u16 = 0x11;
/// How often each measured loop is run: the fastest counts, so that a busy host does not look like a
/// slow one.
pub(super) const ROUNDS: u32 = 6;
/// Turns of the measured loop in ring 3, two instructions each.
pub(super) const TURNS3: u32 = 300_000;
/// Turns of the measured loop in ring 0, fewer since they may be emulated one by one.
pub(super) const TURNS0: u32 = 50_000;
/// `out` instructions in a row, for the cost of an exit.
pub(super) const OUTS: u32 = 50;
/// MSR that the MSR filter is tried with: IA32_TSC_AUX.
pub(super) const FILTERED_MSR: u32 = 0xc000_0103;

global_asm!(
    r#"
    .pushsection .rodata.tandem_check, "a", @progbits
    .balign 16
    .globl tandem_check_begin
tandem_check_begin:

    # Ring 3, as the embedded guest's main loop: SSE, a loop, MMIO out and in, an interrupt.
    .globl tandem_check_ring3
tandem_check_ring3:
    mov     rbx, {mmio}
    mov     ecx, 7
    movd    xmm0, ecx
    paddd   xmm0, xmm0
    movd    eax, xmm0
    mov     dword ptr [rbx], eax
    mov     edx, {rounds}
1:  mov     ecx, {turns3}
2:  dec     ecx
    jnz     2b
    mov     dword ptr [rbx + 4], ecx
    dec     edx
    jnz     1b
    mov     edx, dword ptr [rbx + 8]
    mov     dword ptr [rbx + 12], edx
    mov     rsi, {interrupted}
3:  mov     dword ptr [rbx + 16], edx
    cmp     dword ptr [rsi], 0
    je      3b
    mov     dword ptr [rbx + 20], edx
4:  mov     dword ptr [rbx + 24], edx
    jmp     4b

    # The interrupt's handler, ring 0.
    .globl tandem_check_interrupt
tandem_check_interrupt:
    push    rax
    mov     eax, {interrupted}
    mov     dword ptr [rax], 1
    pop     rax
    iretq

    # Ring 0: port exits, and a loop between two of them.
    .globl tandem_check_ring0
tandem_check_ring0:
    mov     ecx, {outs}
2:  mov     eax, ecx
    out     {found}, eax
    dec     ecx
    jnz     2b
    mov     edx, {rounds}
3:  mov     ecx, {turns0}
4:  dec     ecx
    jnz     4b
    mov     eax, ecx
    out     {found}, eax
    dec     edx
    jnz     3b
    jmp     6f

    # Ring 0: SSE arithmetic.
    .globl tandem_check_sse
tandem_check_sse:
    mov     ecx, 7
    movd    xmm0, ecx
    paddd   xmm0, xmm0
    movd    eax, xmm0
    out     {found}, eax
    jmp     6f

    # Ring 0: a 16-byte compare and exchange.
    .globl tandem_check_cmpxchg16b
tandem_check_cmpxchg16b:
    mov     esi, {scratch}
    xor     eax, eax
    xor     edx, edx
    mov     ebx, 14
    xor     ecx, ecx
    lock cmpxchg16b [rsi]
    mov     eax, dword ptr [rsi]
    out     {found}, eax
    jmp     6f

    # Ring 3: a system call. The handler reports its code segment, then the caller its own.
    .globl tandem_check_syscall
tandem_check_syscall:
    syscall
    jmp     5f
    .globl tandem_check_syscall_entry
tandem_check_syscall_entry:
    mov     eax, cs
    out     {found}, eax
    sysretq

    # Ring 3: a software interrupt, likewise.
    .globl tandem_check_int
tandem_check_int:
    int     0x80
5:  mov     eax, cs
    mov     rbx, {mmio}
    mov     dword ptr [rbx], eax
    jmp     5b
    .globl tandem_check_int_entry
tandem_check_int_entry:
    mov     eax, cs
    out     {found}, eax
    iretq

    # Ring 3: eight instructions of one byte each, to be stepped.
    .globl tandem_check_step
tandem_check_step:
    .rept   8
    nop
    .endr
    jmp     5b

    # Ring 3: one page written, then another.
    .globl tandem_check_dirty
tandem_check_dirty:
    mov     rbx, {mmio}
    mov     esi, {dirty0}
    mov     dword ptr [rsi], 1
    mov     dword ptr [rbx], esi
    mov     esi, {dirty1}
    mov     dword ptr [rsi], 1
    mov     dword ptr [rbx], esi
    jmp     5b

    # Ring 0: an MSR read that the host is to answer.
    .globl tandem_check_msr
tandem_check_msr:
    mov     ecx, {msr}
    rdmsr
    out     {found}, eax
    jmp     6f

    # Ring 0 in 32-bit protected mode without paging: where a PVH kernel starts.
    .globl tandem_check_protected
tandem_check_protected:
    .code32
    mov     eax, cs
    out     {found}, eax
    hlt
    .code64

    # Ring 0: two control registers.
    .globl tandem_check_control
tandem_check_control:
    mov     rax, cr3
    out     {found}, eax
    mov     rax, cr4
    out     {found}, eax
    jmp     6f

    # The vector of an exception comes in al.
    .globl tandem_check_exception
tandem_check_exception:
    out     {exception}, al
6:  hlt
    jmp     6b

    .globl tandem_check_end
tandem_check_end:
    .popsection
    "#,
    mmio = const MMIO,
    rounds = const ROUNDS,
    turns3 = const TURNS3,
    turns0 = const TURNS0,
    outs = const OUTS,
    interrupted = const INTERRUPTED,
    scratch = const SCRATCH,
    dirty0 = const DIRTIED[0],
    dirty1 = const DIRTIED[1],
    msr = const FILTERED_MSR,
    found = const FOUND,
    exception = const EXCEPTION,
);

macro_rules! snippets {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident;)*) => {
        unsafe extern "C" {
            safe static tandem_check_begin: u8;
            safe static tandem_check_end: u8;
            $(safe static $symbol: u8;)*
        }

        /// The entry points in the blob.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Snippet {
            $($(#[$doc])* $name,)*
        }

        impl Snippet {
            /// Its guest-physical address.
            pub(super) fn address(self) -> u64 {
                let symbol = match self {
                    $(Self::$name => &raw const $symbol,)*
                };
                BLOB + (symbol.addr() - (&raw const tandem_check_begin).addr()) as u64
            }
        }
    };
}

snippets! {
    Ring3 = tandem_check_ring3;
    Interrupt = tandem_check_interrupt;
    Ring0 = tandem_check_ring0;
    Sse = tandem_check_sse;
    Cmpxchg16b = tandem_check_cmpxchg16b;
    Syscall = tandem_check_syscall;
    SyscallEntry = tandem_check_syscall_entry;
    Int = tandem_check_int;
    IntEntry = tandem_check_int_entry;
    Step = tandem_check_step;
    Dirty = tandem_check_dirty;
    Msr = tandem_check_msr;
    Protected = tandem_check_protected;
    Control = tandem_check_control;
    Exception = tandem_check_exception;
}

/// The machine code of all snippets.
pub(super) fn blob() -> &'static [u8] {
    let (begin, end) = (&raw const tandem_check_begin, &raw const tandem_check_end);
    // SAFETY: both symbols bound one read-only object that the assembly above lays out.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}
