/* SPDX-License-Identifier: GPL-2.0-only */
/* Which bits of a vCPU's controls make the traps exit, and whose they are: ours or KVM's. */
#ifndef TANDEM_CONTROLS_H
#define TANDEM_CONTROLS_H

#include "shim.h"

/* Words of controls that the traps of one virtualisation extension lie in. */
#define TANDEM_WORDS 2

/* How a trap is had. */
struct tandem_trap {
	u32 number;
	u32 reason;		/* of the exit: SVM exit code, VMX basic reason */
	u32 word, control;	/* the bit that makes it exit, and in which of the words */
	u32 feature;		/* X86_FEATURE_...: where CPUID hides it, KVM wants the exit for itself, to inject #UD; or 0 */
};

/* What the hardware of a registered vCPU has been told. */
struct tandem_hardware {
	u64 vmcs;		/* VMX: physical address of the vCPU's VMCS, once it was entered; else 0 */
	u32 traps;		/* that were asked for last, */
	u32 reserved;
	u32 wanted[TANDEM_WORDS]; /* the controls for them, */
	u32 added[TANDEM_WORDS]; /* and those that are set because of us */
};

/* The trap that an exit is for; NULL: none of ours, or one that CPUID hides. */
static inline const struct tandem_trap *tandem_find_trap(const struct tandem_trap *traps, int count, u32 reason,
							 struct kvm_vcpu *vcpu)
{
	for (int i = 0; i < count; i++)
		if (traps[i].reason == reason)
			return !traps[i].feature || tandem_guest_has(vcpu, traps[i].feature) ? &traps[i] : NULL;
	return NULL;
}

/* Finds the controls for a set of traps, if it is not the one that was asked for last. */
static inline void tandem_choose(const struct tandem_trap *traps, int count, u32 set, struct tandem_hardware *hardware)
{
	if (hardware->traps == set)
		return;
	memset(hardware->wanted, 0, sizeof(hardware->wanted));
	for (int i = 0; i < count; i++)
		if (set & BIT(traps[i].number))
			hardware->wanted[traps[i].word] |= traps[i].control;
	hardware->traps = set;
}

/*
 * A word of controls that is `now` in force, as it shall be: with what is wanted, and without what only we wanted
 * before. A control that we added and that KVM's own write has dropped is added again here.
 */
static inline u32 tandem_adjust(const struct tandem_trap *traps, int count, u32 word, u32 now, struct kvm_vcpu *vcpu,
				struct tandem_hardware *hardware)
{
	u32 wanted = hardware->wanted[word], dropped = hardware->added[word] & ~wanted;

	hardware->added[word] = (hardware->added[word] & wanted) | (wanted & ~now);
	for (int i = 0; dropped && i < count; i++)
		if (traps[i].word == word && traps[i].feature && !tandem_guest_has(vcpu, traps[i].feature))
			dropped &= ~traps[i].control;
	return (now | wanted) & ~dropped;
}

#endif
