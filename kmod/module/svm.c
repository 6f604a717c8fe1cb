// SPDX-License-Identifier: GPL-2.0-only
/* AMD-V. References: APM volume 2, chapter 15 and appendix B. */

#include <linux/mem_encrypt.h>
#include <linux/mm.h>

#include "shim.h"
#include "svm.h"

/* VMCB clean bit 0: intercepts, TSC offset and pause filter (APM 15.15.3). */
#define CLEAN_INTERCEPTS BIT(0)

static const struct {
	u32 trap, bit;
} intercepts[] = {
	{ TANDEM_RDTSC, INTERCEPT_RDTSC },
	{ TANDEM_RDTSCP, INTERCEPT_RDTSCP },
	{ TANDEM_RDPMC, INTERCEPT_RDPMC },
};

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

static void arm(struct kvm_vcpu *vcpu, u32 traps, struct tandem_hardware *hardware)
{
	struct vmcb *vmcb = vmcb_of(vcpu);

	for (int i = 0; i < ARRAY_SIZE(intercepts); i++) {
		u32 trap = intercepts[i].trap, bit = intercepts[i].bit;
		u32 *word = &vmcb->control.intercepts[bit / 32];

		if (traps & trap) {
			if (*word & BIT(bit % 32))
				continue;
			*word |= BIT(bit % 32);
			hardware->added |= trap;
		} else if (hardware->added & trap) {
			hardware->added &= ~trap;
			/* KVM wants this one for itself where CPUID hides the instruction, to inject #UD. */
			if (trap == TANDEM_RDTSCP && !tandem_guest_has(vcpu, X86_FEATURE_RDTSCP))
				continue;
			*word &= ~BIT(bit % 32);
		} else {
			continue;
		}
		vmcb->control.clean &= ~CLEAN_INTERCEPTS;
	}
}

static void disarm_idle(struct kvm_vcpu *vcpu, struct tandem_hardware *hardware)
{
	arm(vcpu, 0, hardware);
}

static void decode(struct kvm_vcpu *vcpu, struct tandem_exit *exit)
{
	struct vmcb *vmcb = vmcb_of(vcpu);

	exit->reason = vmcb->control.exit_code;
	exit->rip = vmcb->save.rip;
	exit->registers = vcpu->arch.regs;
	switch (exit->reason) {
	case SVM_EXIT_RDTSC:
		exit->trap = 0;
		break;
	case SVM_EXIT_RDTSCP:
		exit->trap = 1;
		break;
	case SVM_EXIT_RDPMC:
		exit->trap = 2;
		break;
	default:
		exit->trap = TANDEM_TRAP_NONE;
	}
}

/*
 * KVM treats INVD as a no-operation: it advances RIP by the length of the instruction at RIP, whichever it is and
 * with whatever prefixes, ends an interrupt shadow, takes a single-step trap, and enters the guest again, without
 * leaving the inner loop where the CPU tells the next RIP.
 */
static void step_over(struct kvm_vcpu *vcpu)
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
	.traps = TANDEM_RDTSC | TANDEM_RDTSCP | TANDEM_RDPMC,
	.layout_fits = layout_fits,
	.arm = arm,
	.disarm_idle = disarm_idle,
	.decode = decode,
	.step_over = step_over,
	.ignore = ignore,
};
