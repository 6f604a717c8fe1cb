// SPDX-License-Identifier: GPL-2.0-only
/* AMD-V. References: APM volume 2, chapter 15 and appendix B. */

#include <linux/mem_encrypt.h>
#include <linux/mm.h>

#include "controls.h"
#include "shim.h"
#include "svm.h"

/* VMCB clean bit 0: intercepts, TSC offset and pause filter (APM 15.15.3). */
#define CLEAN_INTERCEPTS BIT(0)

/* The words of intercepts that the traps lie in. */
static const u32 words[TANDEM_WORDS] = { INTERCEPT_WORD3, INTERCEPT_WORD4 };

#define AT(word, bit) (word), BIT((bit) - 32 * (INTERCEPT_WORD3 + (word)))

/* RDRAND and RDSEED cannot be intercepted. */
static const struct tandem_trap traps[] = {
	{ TANDEM_RDTSC, SVM_EXIT_RDTSC, AT(0, INTERCEPT_RDTSC) },
	{ TANDEM_RDTSCP, SVM_EXIT_RDTSCP, AT(1, INTERCEPT_RDTSCP), X86_FEATURE_RDTSCP },
	{ TANDEM_RDPMC, SVM_EXIT_RDPMC, AT(0, INTERCEPT_RDPMC) },
};

static u32 can_trap(void)
{
	return BIT(TANDEM_RDTSC) | BIT(TANDEM_RDTSCP) | BIT(TANDEM_RDPMC);
}

static struct vmcb *vmcb_of(struct kvm_vcpu *vcpu)
{
	return container_of(vcpu, struct tandem_vcpu_svm, vcpu)->vmcb;
}

static bool intercepted(struct vmcb *vmcb, u32 bit)
{
	return vmcb->control.intercepts[bit / 32] & BIT(bit % 32);
}

/*
 * A vCPU's VMCB pointer, KVM's record of the same VMCB with its physical address, and the pointer to that record
 * confirm each other; and every VMCB of KVM's intercepts VMRUN, CPUID and MSR accesses.
 */
static bool layout_fits(struct kvm_vcpu *vcpu)
{
	struct tandem_vcpu_svm *svm = container_of(vcpu, struct tandem_vcpu_svm, vcpu);
	struct vmcb *vmcb = svm->vmcb;

	return svm->current_vmcb == &svm->vmcb01 && svm->vmcb01.ptr == vmcb && PAGE_ALIGNED(vmcb) &&
	       virt_addr_valid(vmcb) && __sme_clr(svm->vmcb01.pa) == __pa(vmcb) &&
	       intercepted(vmcb, INTERCEPT_VMRUN) && intercepted(vmcb, INTERCEPT_CPUID) &&
	       intercepted(vmcb, INTERCEPT_MSR_PROT);
}

static void arm(struct kvm_vcpu *vcpu, u32 set, struct tandem_hardware *hardware)
{
	struct vmcb_control_area *control = &vmcb_of(vcpu)->control;

	tandem_choose(traps, ARRAY_SIZE(traps), set, hardware);
	for (int word = 0; word < TANDEM_WORDS; word++) {
		u32 now = control->intercepts[words[word]];
		u32 new = tandem_adjust(traps, ARRAY_SIZE(traps), word, now, vcpu, hardware);

		if (new == now)
			continue;
		control->intercepts[words[word]] = new;
		control->clean &= ~CLEAN_INTERCEPTS;
	}
}

static void disarm_idle(struct kvm_vcpu *vcpu, struct tandem_hardware *hardware)
{
	arm(vcpu, 0, hardware);
}

static void decode(struct kvm_vcpu *vcpu, struct tandem_exit *exit)
{
	struct vmcb *vmcb = vmcb_of(vcpu);
	const struct tandem_trap *trap;

	exit->reason = vmcb->control.exit_code;
	exit->rip = vmcb->save.rip;
	exit->registers = vcpu->arch.regs;
	trap = tandem_find_trap(traps, ARRAY_SIZE(traps), exit->reason, vcpu);
	exit->trap = trap ? trap->number : TANDEM_TRAP_NONE;
}

/*
 * KVM treats INVD as a no-operation: it advances RIP by the length of the instruction at RIP, whichever it is and
 * with whatever prefixes, ends an interrupt shadow, takes a single-step trap, and enters the guest again, without
 * leaving the inner loop where the CPU tells the next RIP.
 */
static void step_over(struct kvm_vcpu *vcpu, const struct tandem_exit *exit)
{
	vmcb_of(vcpu)->control.exit_code = SVM_EXIT_INVD;
}

/* KVM counts a physical interrupt, which it has taken already, and goes on. */
static void ignore(struct kvm_vcpu *vcpu)
{
	vmcb_of(vcpu)->control.exit_code = SVM_EXIT_INTR;
}

const struct tandem_isa tandem_svm = {
	.module = "kvm_amd",
	.number = 2,
	.traps = can_trap,
	.layout_fits = layout_fits,
	.arm = arm,
	.disarm_idle = disarm_idle,
	.decode = decode,
	.step_over = step_over,
	.ignore = ignore,
};
