/* Registers of an x86-64 thread as the kernel saves them (arch/x86/include/asm/ptrace.h, since 2.6.25). */
#ifndef AEROSTAT_PTRACE_H
#define AEROSTAT_PTRACE_H
struct pt_regs {
	unsigned long r15, r14, r13, r12;
	unsigned long bp, bx;
	unsigned long r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#endif
