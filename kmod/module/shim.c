// SPDX-License-Identifier: GPL-2.0-only
/* Probes, vCPU descriptors and shared memory; see shim.h. */

#include <linux/delay.h>
#include <linux/file.h>
#include <linux/kallsyms.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/smp.h>
#include <linux/tracepoint.h>
#include <linux/utsname.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <asm/tsc.h>
#include <generated/utsrelease.h>

#include "shim.h"

/* Exported by kvm.ko; their declarations are in a header that it keeps to itself. */
extern struct tracepoint __tracepoint_kvm_entry;
extern struct tracepoint __tracepoint_kvm_exit;

static void on_entry(void *data, struct kvm_vcpu *vcpu, bool immediate_exit)
{
	tandem_on_entry(vcpu);
}

static void on_exit(void *data, struct kvm_vcpu *vcpu, u32 isa)
{
	tandem_on_exit(vcpu);
}

/* Attaches the probes: from now on each entry and exit of each vCPU of the host costs a look into a table. */
int tandem_attach(void)
{
	int err = tracepoint_probe_register(&__tracepoint_kvm_exit, on_exit, NULL);

	if (err)
		return err;
	err = tracepoint_probe_register(&__tracepoint_kvm_entry, on_entry, NULL);
	if (err) {
		tracepoint_probe_unregister(&__tracepoint_kvm_exit, on_exit, NULL);
		tracepoint_synchronize_unregister();
	}
	return err;
}

/* Detaches them, and waits until none runs any more. */
void tandem_detach(void)
{
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, on_entry, NULL);
	tracepoint_probe_unregister(&__tracepoint_kvm_exit, on_exit, NULL);
	tracepoint_synchronize_unregister();
}

/* The only Linux whose KVM this module knows without a look into its source. */
#define KNOWN(version) ((version) >= KERNEL_VERSION(7, 3, 0) && (version) < KERNEL_VERSION(7, 4, 0))

/*
 * What can be said of KVM's private layouts before there is a vCPU: they are those of the kernel that this module was
 * built for, and there they were compared with KVM's source, or are known. Each registration looks at its vCPU besides.
 */
bool tandem_layout_known(void)
{
	const char *running = init_utsname()->release, *built_for = UTS_RELEASE;

	/* A string, and not numbers in the code: the tests alter it in the module's file. */
	OPTIMIZER_HIDE_VAR(built_for);
	if (strcmp(running, built_for)) {
		pr_err("tandem: built for Linux %s, and this is %s: KVM's private state may be laid out otherwise; refused\n",
		       built_for, running);
		return false;
	}
	if (!(&tandem_layout_checked && tandem_layout_checked) && !KNOWN(LINUX_VERSION_CODE)) {
		pr_err("tandem: KVM's private state in Linux %s is unknown, and was not compared with KVM's source at the build; refused\n",
		       running);
		return false;
	}
	return true;
}

const struct tandem_isa *tandem_find_isa(void)
{
	if (boot_cpu_has(X86_FEATURE_SVM))
		return &tandem_svm;
	if (boot_cpu_has(X86_FEATURE_VMX))
		return &tandem_vmx;
	return NULL;
}

/*
 * The vCPU of a descriptor, with a reference to its file: the vCPU lives as long. An ERR_PTR for anything but a
 * vCPU of this process's VM under this vendor's KVM. KVM exports nothing to tell its files by, so it is done by
 * the file's owner and by the name of its ioctl function.
 */
struct file *tandem_get_vcpu(const struct tandem_isa *isa, int fd, struct kvm_vcpu **vcpu)
{
	char name[KSYM_SYMBOL_LEN];
	struct file *file = fget(fd);
	int err = -ENOTTY;

	if (!file)
		return ERR_PTR(-EBADF);
	if (!file->f_op->owner || strcmp(module_name(file->f_op->owner), isa->module) || !file->f_op->unlocked_ioctl)
		goto refuse;
	sprint_symbol_no_offset(name, (unsigned long)file->f_op->unlocked_ioctl);
	if (strcmp(name, "kvm_vcpu_ioctl [kvm]") && strcmp(name, "kvm_vcpu_ioctl"))
		goto refuse;
	*vcpu = file->private_data;
	err = -EPERM;
	if ((*vcpu)->kvm->mm != current->mm)
		goto refuse;
	return file;
refuse:
	fput(file);
	return ERR_PTR(err);
}

void tandem_put_vcpu(struct file *file)
{
	fput(file);
}

/* Whether the vCPU can be captured. Called with its lock held. */
int tandem_vcpu_fits(const struct tandem_isa *isa, struct kvm_vcpu *vcpu)
{
	/*
	 * An in-kernel interrupt controller injects when it likes, and a vCPU that halts in the kernel cannot be
	 * let go of. A guest hypervisor would see our intercepts in its own guests.
	 */
	if (vcpu->kvm->arch.irqchip_mode != KVM_IRQCHIP_NONE || vcpu->arch.guest_state_protected ||
	    vcpu->kvm->arch.vm_type != KVM_X86_DEFAULT_VM || tandem_in_nested_guest(vcpu) ||
	    tandem_guest_has(vcpu, X86_FEATURE_SVM) || tandem_guest_has(vcpu, X86_FEATURE_VMX))
		return -EOPNOTSUPP;
	if (!isa->layout_fits(vcpu)) {
		pr_err("tandem: KVM's private vCPU state (%s) is not laid out as this module was built for; refused\n",
		       isa->module);
		return -ENXIO;
	}
	return 0;
}

bool tandem_vcpu_trylock(struct kvm_vcpu *vcpu)
{
	return mutex_trylock(&vcpu->mutex);
}

void tandem_vcpu_unlock(struct kvm_vcpu *vcpu)
{
	mutex_unlock(&vcpu->mutex);
}

static void nothing(void *unused)
{
}

/* Makes a vCPU that is in the guest leave it, and so pass the probes. */
void tandem_vcpu_nudge(struct kvm_vcpu *vcpu)
{
	int cpu = READ_ONCE(vcpu->cpu);

	if (cpu >= 0 && cpu < nr_cpu_ids && cpu_online(cpu))
		smp_call_function_single(cpu, nothing, NULL, 1);
}

/*
 * A pause leaves KVM_RUN by a request that KVM turns into KVM_EXIT_TPR_ACCESS before it would enter the guest. Only
 * an in-kernel local APIC makes it otherwise, and vCPUs with one are refused.
 */
void tandem_request_pause(struct kvm_vcpu *vcpu)
{
	kvm_make_request(KVM_REQ_REPORT_TPR_ACCESS, vcpu);
}

void tandem_cancel_pause(struct kvm_vcpu *vcpu)
{
	kvm_clear_request(KVM_REQ_REPORT_TPR_ACCESS, vcpu);
}

bool tandem_in_nested_guest(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.hflags & HF_GUEST_MASK;
}

void *tandem_alloc_area(unsigned long len)
{
	return vmalloc_user(len);
}

void tandem_free_area(void *area)
{
	vfree(area);
}

/* Maps the whole area, shared. The pages outlive the area for as long as they are mapped. */
int tandem_map_area(struct vm_area_struct *vma, void *area, unsigned long len)
{
	if (vma->vm_pgoff || vma->vm_end - vma->vm_start != len || !(vma->vm_flags & VM_SHARED) ||
	    (vma->vm_flags & VM_EXEC))
		return -EINVAL;
	vm_flags_mod(vma, VM_DONTCOPY, VM_MAYEXEC);
	return remap_vmalloc_range(vma, area, 0);
}

u64 tandem_rdtsc(void)
{
	return rdtsc_ordered();
}

/* As good as /dev/urandom. With interrupts off, if the kernel is not PREEMPT_RT. */
u64 tandem_random(void)
{
	return get_random_u64();
}

u32 tandem_host_khz(void)
{
	return tsc_khz;
}

void tandem_sleep(void)
{
	usleep_range(100, 1000);
}
