// SPDX-License-Identifier: GPL-2.0-only
/* VT-x. References: SDM volume 3C, chapters 25 and 28. */

#include <linux/smp.h>
#include <asm/vmx.h>

#include "shim.h"
#include "vmx.h"

/* Traps and the control that makes them exit: RDTSC exiting covers RDTSCP. */
#define TSC_TRAPS (TANDEM_RDTSC | TANDEM_RDTSCP)

static u64 vmread(u64 field)
{
	u64 value;

	asm volatile("vmread %1, %0" : "=rm"(value) : "r"(field) : "cc");
	return value;
}

static void vmwrite(u64 field, u64 value)
{
	asm volatile("vmwrite %1, %0" : : "r"(field), "rm"(value) : "cc");
}

static u64 vmptrst(void)
{
	u64 address;

	asm volatile("vmptrst %0" : "=m"(address) : : "cc");
	return address;
}

static void vmptrld(u64 address)
{
	asm volatile("vmptrld %0" : : "m"(address) : "cc");
}

static struct tandem_vcpu_vt *vt_of(struct kvm_vcpu *vcpu)
{
	return &container_of(vcpu, struct tandem_vcpu_vmx, vcpu)->vt;
}

/*
 * In front of the exit reason lies a list head, which is empty or of a vCPU that sleeps: its neighbours point back
 * at it. Nothing else there would.
 */
static bool layout_fits(struct kvm_vcpu *vcpu)
{
	struct list_head *list = &vt_of(vcpu)->pi_wakeup_list;

	return list->next == list && list->prev == list;
}

static void set_controls(u32 traps, struct tandem_hardware *hardware)
{
	u32 now = vmread(CPU_BASED_VM_EXEC_CONTROL), wanted = now;

	if (traps & TSC_TRAPS)
		wanted |= CPU_BASED_RDTSC_EXITING;
	else if (hardware->added & TSC_TRAPS)
		wanted &= ~CPU_BASED_RDTSC_EXITING;
	if (traps & TANDEM_RDPMC)
		wanted |= CPU_BASED_RDPMC_EXITING;
	else if (hardware->added & TANDEM_RDPMC)
		wanted &= ~CPU_BASED_RDPMC_EXITING;
	/* A control that we added and that KVM's own write has dropped is added again here, not given back. */
	if (~now & wanted & CPU_BASED_RDTSC_EXITING)
		hardware->added |= TSC_TRAPS;
	if (~now & wanted & CPU_BASED_RDPMC_EXITING)
		hardware->added |= TANDEM_RDPMC;
	hardware->added &= traps ? ~0u : 0;
	if (wanted != now)
		vmwrite(CPU_BASED_VM_EXEC_CONTROL, wanted);
}

static void arm(struct kvm_vcpu *vcpu, u32 traps, struct tandem_hardware *hardware)
{
	if (!hardware->vmcs)
		hardware->vmcs = vmptrst();
	if (traps | hardware->added)
		set_controls(traps, hardware);
}

/*
 * The VMCS of a vCPU that does not run is still active on the CPU that ran it last, as KVM leaves it there until it
 * is wanted elsewhere; and nobody can want it while its lock is held.
 */
static void disarm_here(void *hardware)
{
	u64 current_vmcs = vmptrst();

	vmptrld(((struct tandem_hardware *)hardware)->vmcs);
	set_controls(0, hardware);
	if (current_vmcs != ~0ull)
		vmptrld(current_vmcs);
}

static void disarm_idle(struct kvm_vcpu *vcpu, struct tandem_hardware *hardware)
{
	if (hardware->added)
		smp_call_function_single(vcpu->cpu, disarm_here, hardware, 1);
}

static void decode(struct kvm_vcpu *vcpu, struct tandem_exit *exit)
{
	u32 reason = vt_of(vcpu)->exit_reason;

	exit->reason = reason & 0xffff;
	exit->trap = TANDEM_TRAP_NONE;
	exit->registers = vcpu->arch.regs;
	if (reason & VMX_EXIT_REASONS_FAILED_VMENTRY)
		return;
	switch (exit->reason) {
	case EXIT_REASON_RDTSC:
		exit->trap = 0;
		break;
	case EXIT_REASON_RDTSCP:
		exit->trap = 1;
		break;
	case EXIT_REASON_RDPMC:
		exit->trap = 2;
		break;
	default:
		return;
	}
	exit->rip = vmread(GUEST_RIP);
}

/* As on SVM: KVM steps over what it takes for an INVD, by the instruction length that the exit came with. */
static void step_over(struct kvm_vcpu *vcpu)
{
	vt_of(vcpu)->exit_reason = EXIT_REASON_INVD;
}

/* KVM no longer asks for the window, looks for events once more, and asks again if it still has to wait. */
static void ignore(struct kvm_vcpu *vcpu)
{
	vt_of(vcpu)->exit_reason = EXIT_REASON_INTERRUPT_WINDOW;
}

const struct tandem_isa tandem_vmx = {
	.module = "kvm_intel",
	.number = 1,
	.traps = TANDEM_RDTSC | TANDEM_RDTSCP | TANDEM_RDPMC,
	.layout_fits = layout_fits,
	.arm = arm,
	.disarm_idle = disarm_idle,
	.decode = decode,
	.step_over = step_over,
	.ignore = ignore,
};
