/* BCC guards map types by version; every kernel that has the BPF ring buffer is past those. */
#ifndef AEROSTAT_VERSION_H
#define AEROSTAT_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
#endif
