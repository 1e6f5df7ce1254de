/* BCC includes this first. Only what its own headers look at is set. */
#ifndef AEROSTAT_KCONFIG_H
#define AEROSTAT_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_X86_64 1
#endif
