/* Guest memory by QEMU's own options: one block for each backend, split at the PCI hole. */
#ifndef STANDIN_QEMU_MEMORY_H
#define STANDIN_QEMU_MEMORY_H

#include "control.h"

/* What memory_region_find returns: a block and an offset in it. */
struct section {
	struct part *part;
	uint64_t offset;
};

extern struct part parts[16];
extern int part_count;

void map_guest_memory(int argc, char **argv);

/* Return the value of the last `option VALUE` whose value begins with `begin`, or NULL. */
const char *last_option(int argc, char **argv, const char *option, const char *begin);

/* Punch a hole in the file behind a part. */
long punch(struct part *part, uint64_t start, uint64_t length);

#endif
