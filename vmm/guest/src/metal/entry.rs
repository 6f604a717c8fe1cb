//! Start-up and interrupt entry: the only code that runs in ring 0, all of it assembly.
//!
//! It is short because some hypervisors emulate ring 0 instruction by instruction. Interrupt handlers
//! add one to a counter; the interrupt controllers end interrupts by themselves.

use core::arch::global_asm;

use super::fault::{FAULT, FAULT_STACK, FAULT_STACK_SIZE, on_fault};
use super::interrupts::COUNTERS;
use super::tables::{INTERRUPTS, LEVEL4, SEGMENTS, STACK, TASK_STATE, USER_CODE, USER_DATA};

/// Flags in ring 3: interrupts on.
const FLAGS: u64 = 0x202;

/// Paging, write protection, numeric errors, protected mode, no emulation of the FPU.
const CR0: u64 = 0x8001_0033;

/// PAE, SSE and its exceptions.
const CR4: u64 = 0x620;

/// Where ring 3's stack begins, growing down (see link.ld).
const USER_STACK: u64 = 0x20_0000;

/// The 8254 counts 1,193,182 Hz down from this: 100 Hz.
const TIMER_DIVISOR: u64 = 11_932;

// Exceptions 0 to 31: push zero where the processor pushes no error code, and the vector.
// Lines 0 to 15 of the interrupt controllers: count.
global_asm!(
    r#"
    .section .stubs,"ax",@progbits
    .macro exception vector, has_code
        .balign 16, 0xcc
        .ifeq \has_code
        push 0
        .endif
        push \vector
        jmp 2f
    .endm
    .macro line number
        .balign 16, 0xcc
        inc dword ptr [{counters} + 4 * \number]
        iretq
    .endm
    .irp vector, 0, 1, 2, 3, 4, 5, 6, 7
        exception \vector, 0
    .endr
    exception 8, 1
    exception 9, 0
    .irp vector, 10, 11, 12, 13, 14
        exception \vector, 1
    .endr
    exception 15, 0
    exception 16, 0
    exception 17, 1
    .irp vector, 18, 19, 20
        exception \vector, 0
    .endr
    exception 21, 1
    .irp vector, 22, 23, 24, 25, 26, 27, 28
        exception \vector, 0
    .endr
    exception 29, 1
    exception 30, 1
    exception 31, 0
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        line \number
    .endr
    .balign 16, 0xcc

    // Tells ring 3 what happened and goes on there, in on_fault.
2:
    pop qword ptr [{fault}]
    pop qword ptr [{fault} + 8]
    pop qword ptr [{fault} + 16]
    mov rax, cr2
    mov qword ptr [{fault} + 24], rax
    mov esp, {stack}
    push {user_data}
    push offset {fault_stack} + {fault_stack_size}
    push {flags}
    push {user_code}
    push offset {on_fault}
    iretq
    "#,
    counters = sym COUNTERS,
    fault = sym FAULT,
    fault_stack = sym FAULT_STACK,
    fault_stack_size = const FAULT_STACK_SIZE,
    on_fault = sym on_fault,
    stack = const STACK,
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    flags = const FLAGS,
);

// Entry by the 64-bit Linux boot protocol: RSI = the zero page.
global_asm!(
    r#"
    .section .boot,"ax",@progbits
    .global _start
_start:
    cli
    mov esp, {stack}
    mov eax, {level4}
    mov cr3, rax
    lgdt [rip + 3f]
    lidt [rip + 4f]
    mov eax, {cr0}
    mov cr0, rax
    mov eax, {cr4}
    mov cr4, rax
    mov eax, {task_state}
    ltr ax
    mov eax, {user_data}
    mov ds, eax
    mov es, eax

    // The interrupt controllers: vectors 0x20 and 0x28, automatic end of interrupt, all lines on.
    mov al, 0x11
    out 0x20, al
    out 0xa0, al
    mov al, 0x20
    out 0x21, al
    mov al, 0x28
    out 0xa1, al
    mov al, 0x04
    out 0x21, al
    mov al, 0x02
    out 0xa1, al
    mov al, 0x03
    out 0x21, al
    out 0xa1, al
    xor eax, eax
    out 0x21, al
    out 0xa1, al

    // The timer: counter 0, low then high byte, mode 2.
    mov al, 0x34
    out 0x43, al
    mov al, {divisor} & 0xff
    out 0x40, al
    mov al, {divisor} >> 8
    out 0x40, al

    push {user_data}
    push {user_stack}
    push {flags}
    push {user_code}
    push offset tandem_ring3
    iretq

    .balign 8
    .word 0, 0, 0
3:  .word {segments_last}
    .quad {segments}
    .word 0, 0, 0
4:  .word {interrupts_last}
    .quad {interrupts}

    // Ring 3.
tandem_ring3:
    cld
    push 0x1f80
    ldmxcsr dword ptr [rsp]
    pop rax
    mov edi, offset __bss_start
    mov ecx, offset __bss_end
    sub ecx, edi
    xor eax, eax
    rep stosb
    mov rdi, rsi
    xor ebp, ebp
    call {start}
    ud2
    .text
    "#,
    stack = const STACK,
    level4 = const LEVEL4,
    segments = const SEGMENTS.0,
    segments_last = const SEGMENTS.1,
    interrupts = const INTERRUPTS.0,
    interrupts_last = const INTERRUPTS.1,
    cr0 = const CR0,
    cr4 = const CR4,
    task_state = const TASK_STATE,
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    user_stack = const USER_STACK,
    flags = const FLAGS,
    divisor = const TIMER_DIVISOR,
    start = sym crate::start,
);
