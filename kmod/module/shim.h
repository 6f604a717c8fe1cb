/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The C side of tandem.ko: what in the kernel is a macro, a static inline or a private layout. All decisions are
 * in Rust (main.rs and ../brain).
 */
#ifndef TANDEM_SHIM_H
#define TANDEM_SHIM_H

#include <linux/kvm_host.h>

/* Numbers of traps: Trap::number in ../brain/src/trap.rs. A set of traps has their bits. */
enum {
	TANDEM_RDTSC,
	TANDEM_RDTSCP,
	TANDEM_RDPMC,
	TANDEM_RDRAND,
	TANDEM_RDSEED,
	TANDEM_TRAP_NONE = 0xff,
};

/* One exit, as the probe found it. */
struct tandem_exit {
	u32 reason;		/* SVM exit code, VMX basic reason */
	u32 trap;		/* number of the trap, or TANDEM_TRAP_NONE */
	u64 rip;
	u64 flags;		/* RDRAND, RDSEED: RFLAGS, */
	u8 destination;		/* the number of the register that gets the value, */
	u8 size;		/* and the bytes of it */
	unsigned long *registers; /* 16 of them; RSP may be stale unless it is the destination */
};

struct tandem_hardware;

/* What one virtualisation extension needs. All are called with interrupts off or with vcpu->mutex held. */
struct tandem_isa {
	const char *module;	/* the KVM module that owns its vCPUs */
	u32 number;		/* ISA_... of ../brain/src/abi.rs */
	u32 (*traps)(void);	/* that this CPU can intercept */
	/* Whether KVM's private state is where this module believes it to be. */
	bool (*layout_fits)(struct kvm_vcpu *vcpu);
	/* Intercepts `traps` and no others of ours. In a probe. */
	void (*arm)(struct kvm_vcpu *vcpu, u32 traps, struct tandem_hardware *hardware);
	/* The same with no traps, for a vCPU that does not run: its lock is held. May sleep. */
	void (*disarm_idle)(struct kvm_vcpu *vcpu, struct tandem_hardware *hardware);
	void (*decode)(struct kvm_vcpu *vcpu, struct tandem_exit *exit);
	/* Makes KVM step over the instruction, whose results are in `exit`, and enter the guest again. */
	void (*step_over)(struct kvm_vcpu *vcpu, const struct tandem_exit *exit);
	/* Makes KVM do nothing about the exit. */
	void (*ignore)(struct kvm_vcpu *vcpu);
};

extern const struct tandem_isa tandem_svm;
extern const struct tandem_isa tandem_vmx;

/* In layout.c, which is compiled where KVM's source is at hand. */
extern const bool tandem_layout_checked __weak;

/* Whether the guest's CPUID shows a feature (X86_FEATURE_...) that KVM keeps in the leaf of the same number. */
static inline bool tandem_guest_has(struct kvm_vcpu *vcpu, unsigned int feature)
{
	return vcpu->arch.cpu_caps[feature / 32] & BIT(feature % 32);
}

/* In Rust, called by the probes. */
void tandem_on_entry(struct kvm_vcpu *vcpu);
void tandem_on_exit(struct kvm_vcpu *vcpu);

/* In C, called by Rust. */
const struct tandem_isa *tandem_find_isa(void);
bool tandem_layout_known(void);
int tandem_attach(void);
void tandem_detach(void);
struct file *tandem_get_vcpu(const struct tandem_isa *isa, int fd, struct kvm_vcpu **vcpu);
void tandem_put_vcpu(struct file *file);
int tandem_vcpu_fits(const struct tandem_isa *isa, struct kvm_vcpu *vcpu);
bool tandem_vcpu_trylock(struct kvm_vcpu *vcpu);
void tandem_vcpu_unlock(struct kvm_vcpu *vcpu);
void tandem_vcpu_nudge(struct kvm_vcpu *vcpu);
void tandem_request_pause(struct kvm_vcpu *vcpu);
void tandem_cancel_pause(struct kvm_vcpu *vcpu);
bool tandem_in_nested_guest(struct kvm_vcpu *vcpu);
void *tandem_alloc_area(unsigned long len);
void tandem_free_area(void *area);
int tandem_map_area(struct vm_area_struct *vma, void *area, unsigned long len);
u64 tandem_rdtsc(void);
u64 tandem_random(void);
u32 tandem_host_khz(void);
void tandem_sleep(void);

#endif
