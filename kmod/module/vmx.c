// SPDX-License-Identifier: GPL-2.0-only
/* VT-x. References: SDM volume 3C, chapters 25 and 28. */

#include <linux/smp.h>
#include <asm/vmx.h>

#include "controls.h"
#include "shim.h"
#include "vmx.h"

/* The fields of controls that the traps lie in: primary, secondary (SDM 25.6.2). */
static const u32 words[TANDEM_WORDS] = { CPU_BASED_VM_EXEC_CONTROL, SECONDARY_VM_EXEC_CONTROL };

/* RDTSC exiting covers RDTSCP; where CPUID hides that, it faults without an exit. */
static const struct tandem_trap traps[] = {
	{ TANDEM_RDTSC, EXIT_REASON_RDTSC, 0, CPU_BASED_RDTSC_EXITING },
	{ TANDEM_RDTSCP, EXIT_REASON_RDTSCP, 0, CPU_BASED_RDTSC_EXITING },
	{ TANDEM_RDPMC, EXIT_REASON_RDPMC, 0, CPU_BASED_RDPMC_EXITING },
	{ TANDEM_RDRAND, EXIT_REASON_RDRAND, 1, SECONDARY_EXEC_RDRAND_EXITING, X86_FEATURE_RDRAND },
	{ TANDEM_RDSEED, EXIT_REASON_RDSEED, 1, SECONDARY_EXEC_RDSEED_EXITING, X86_FEATURE_RDSEED },
};

/*
 * The upper half of the capability MSR has the controls that may be one (SDM A.3.3). All CPUs with VT-x have the
 * primary ones in question. The kernel's random numbers are behind sleeping locks where it is PREEMPT_RT.
 */
static u32 can_trap(void)
{
	u32 set = BIT(TANDEM_RDTSC) | BIT(TANDEM_RDTSCP) | BIT(TANDEM_RDPMC);
	u64 secondary;

	if (IS_ENABLED(CONFIG_PREEMPT_RT) || rdmsrq_safe(MSR_IA32_VMX_PROCBASED_CTLS2, &secondary))
		return set;
	for (int i = 0; i < ARRAY_SIZE(traps); i++)
		if (traps[i].word == 1 && secondary >> 32 & traps[i].control)
			set |= BIT(traps[i].number);
	return set;
}

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

static void set_controls(struct kvm_vcpu *vcpu, u32 set, struct tandem_hardware *hardware)
{
	tandem_choose(traps, ARRAY_SIZE(traps), set, hardware);
	for (int word = 0; word < TANDEM_WORDS; word++) {
		u32 now, new;

		if (!(hardware->wanted[word] | hardware->added[word]))
			continue;
		now = vmread(words[word]);
		new = tandem_adjust(traps, ARRAY_SIZE(traps), word, now, vcpu, hardware);
		if (new != now)
			vmwrite(words[word], new);
	}
}

static void arm(struct kvm_vcpu *vcpu, u32 set, struct tandem_hardware *hardware)
{
	if (!hardware->vmcs)
		hardware->vmcs = vmptrst();
	set_controls(vcpu, set, hardware);
}

/* A vCPU whose VMCS is to be changed on the CPU where it is active. */
struct elsewhere {
	struct kvm_vcpu *vcpu;
	struct tandem_hardware *hardware;
};

/*
 * The VMCS of a vCPU that does not run is still active on the CPU that ran it last, as KVM leaves it there until it
 * is wanted elsewhere; and nobody can want it while its lock is held.
 */
static void disarm_here(void *argument)
{
	struct elsewhere *there = argument;
	u64 current_vmcs = vmptrst();

	vmptrld(there->hardware->vmcs);
	set_controls(there->vcpu, 0, there->hardware);
	if (current_vmcs != ~0ull)
		vmptrld(current_vmcs);
}

static void disarm_idle(struct kvm_vcpu *vcpu, struct tandem_hardware *hardware)
{
	struct elsewhere there = { vcpu, hardware };

	if (hardware->added[0] | hardware->added[1])
		smp_call_function_single(vcpu->cpu, disarm_here, &there, 1);
}

/*
 * Where RDRAND or RDSEED puts its value (SDM table 28-12): bits 6:3 the register, bits 12:11 the size. KVM has not
 * read RFLAGS and RSP of this exit yet, and reads them from the VMCS when it wants them.
 */
static void decode_random(struct kvm_vcpu *vcpu, struct tandem_exit *exit)
{
	u32 information = vmread(VMX_INSTRUCTION_INFO);

	exit->destination = information >> 3 & 0xf;
	exit->size = 2 << (information >> 11 & 3);
	exit->flags = vmread(GUEST_RFLAGS);
	if (exit->destination == VCPU_REGS_RSP)
		vcpu->arch.regs[VCPU_REGS_RSP] = vmread(GUEST_RSP);
}

static bool is_random(u32 trap)
{
	return trap == TANDEM_RDRAND || trap == TANDEM_RDSEED;
}

static void decode(struct kvm_vcpu *vcpu, struct tandem_exit *exit)
{
	u32 reason = vt_of(vcpu)->exit_reason;
	const struct tandem_trap *trap;

	exit->reason = reason & 0xffff;
	exit->trap = TANDEM_TRAP_NONE;
	exit->registers = vcpu->arch.regs;
	if (reason & VMX_EXIT_REASONS_FAILED_VMENTRY)
		return;
	trap = tandem_find_trap(traps, ARRAY_SIZE(traps), exit->reason, vcpu);
	if (!trap)
		return;
	exit->trap = trap->number;
	exit->rip = vmread(GUEST_RIP);
	if (is_random(exit->trap))
		decode_random(vcpu, exit);
}

/* As on SVM: KVM steps over what it takes for an INVD, by the instruction length that the exit came with. */
static void step_over(struct kvm_vcpu *vcpu, const struct tandem_exit *exit)
{
	if (is_random(exit->trap)) {
		vmwrite(GUEST_RFLAGS, exit->flags);
		if (exit->destination == VCPU_REGS_RSP)
			vmwrite(GUEST_RSP, vcpu->arch.regs[VCPU_REGS_RSP]);
	}
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
	.traps = can_trap,
	.layout_fits = layout_fits,
	.arm = arm,
	.disarm_idle = disarm_idle,
	.decode = decode,
	.step_over = step_over,
	.ignore = ignore,
};
