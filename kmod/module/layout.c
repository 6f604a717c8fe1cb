// SPDX-License-Identifier: GPL-2.0-only
/* Compile-time checks of svm.h and vmx.h against KVM's own headers, where these are at hand. */

#include <linux/build_bug.h>
#include "svm/svm.h"
#include "vmx/vmx.h"

#include "shim.h"
#include "svm.h"
#include "vmx.h"

/* That this file was compiled. */
const bool tandem_layout_checked = true;

static_assert(offsetof(struct vcpu_svm, vmcb) == offsetof(struct tandem_vcpu_svm, vmcb));
static_assert(offsetof(struct vcpu_svm, vmcb01) == offsetof(struct tandem_vcpu_svm, vmcb01));
static_assert(offsetof(struct vcpu_svm, current_vmcb) == offsetof(struct tandem_vcpu_svm, current_vmcb));
static_assert(offsetof(struct kvm_vmcb_info, pa) == offsetof(struct tandem_vmcb_info, pa));
static_assert(sizeof(struct kvm_vmcb_info) == sizeof(struct tandem_vmcb_info));

static_assert(offsetof(struct vcpu_vmx, vt) == offsetof(struct tandem_vcpu_vmx, vt));
static_assert(offsetof(struct vcpu_vt, pi_wakeup_list) == offsetof(struct tandem_vcpu_vt, pi_wakeup_list));
static_assert(offsetof(struct vcpu_vt, exit_reason) == offsetof(struct tandem_vcpu_vt, exit_reason));
