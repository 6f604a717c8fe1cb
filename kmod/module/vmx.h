/* SPDX-License-Identifier: GPL-2.0-only */
/* What this module believes of arch/x86/kvm/vmx/{common,vmx}.h. layout.c and layout_fits() check it. */
#ifndef TANDEM_VMX_H
#define TANDEM_VMX_H

#include <linux/kvm_host.h>
#include <asm/posted_intr.h>

/* The beginning of struct vcpu_vt. */
struct tandem_vcpu_vt {
	struct pi_desc pi_desc;
	struct list_head pi_wakeup_list;
	u32 exit_reason;
};

/* The beginning of struct vcpu_vmx. */
struct tandem_vcpu_vmx {
	struct kvm_vcpu vcpu;
	struct tandem_vcpu_vt vt;
};

#endif
