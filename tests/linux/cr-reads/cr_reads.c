// SPDX-License-Identifier: GPL-2.0
/*
 * Makes kvm_amd with npt=0 usable inside QEMU's software emulation (seen in QEMU 10.0).
 *
 * QEMU's decoder checks a guest's "mov reg, crN" as a read of CR0, whatever N is: it adds the register's number to the
 * exit code only where that code is not zero, and SVM_EXIT_READ_CR0 is zero. KVM with shadow paging asks for exits on
 * reads of CR3 and CR4, but for none on CR0 once the guest's CR0 is the real one; the guest then reads the CR3 of the
 * shadow page tables, and Linux halts early in boot. So ask for exits on CR0 too, before each entry: KVM looks at the
 * instruction itself and answers for the right register.
 *
 * For tests only; on a real CPU it would cost an exit per read of CR0 and change nothing else.
 */
#include <linux/module.h>
#include <linux/kvm_host.h>
#include "x86.h"
#include "svm/svm.h"
#include "trace.h"

static void before_entry(void *data, struct kvm_vcpu *vcpu, bool immediate_exit)
{
	struct vmcb *vmcb = to_svm(vcpu)->vmcb;

	vmcb_set_intercept(&vmcb->control, INTERCEPT_CR0_READ);
	vmcb_mark_dirty(vmcb, VMCB_INTERCEPTS);
}

static int __init cr_reads_init(void)
{
	return register_trace_kvm_entry(before_entry, NULL);
}

static void __exit cr_reads_exit(void)
{
	unregister_trace_kvm_entry(before_entry, NULL);
	tracepoint_synchronize_unregister();
}

module_init(cr_reads_init);
module_exit(cr_reads_exit);
MODULE_DESCRIPTION("Exits on CR0 reads, for QEMU that takes all CR reads for these");
MODULE_LICENSE("GPL");
