/* SPDX-License-Identifier: GPL-2.0-only */
/* What this module believes of arch/x86/kvm/svm/svm.h. layout.c and layout_fits() check it. */
#ifndef TANDEM_SVM_H
#define TANDEM_SVM_H

#include <linux/kvm_host.h>
#include <asm/svm.h>

struct tandem_vmcb_info {
	struct vmcb *ptr;
	unsigned long pa;
	int cpu;
	u64 asid_generation;
};

/* The beginning of struct vcpu_svm. */
struct tandem_vcpu_svm {
	struct kvm_vcpu vcpu;
	struct vmcb *vmcb;
	struct tandem_vmcb_info vmcb01;
	struct tandem_vmcb_info *current_vmcb;
};

#endif
