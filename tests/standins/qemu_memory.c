#define _GNU_SOURCE
#include "qemu_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FOUR_GIB (4UL << 30)
#define NODES 8

struct part parts[16];
int part_count;

const char *last_option(int argc, char **argv, const char *option, const char *begin)
{
	const char *found = NULL;

	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], option) && !strncmp(argv[i + 1], begin, strlen(begin)))
			found = argv[i + 1];
	return found;
}

/* Copy the value of `,key=VALUE` of an option into `out`; false where there is none. */
static bool named(const char *option, const char *key, char out[256])
{
	char wanted[64];
	const char *at;

	snprintf(wanted, sizeof(wanted), ",%s=", key);
	at = strstr(option, wanted);
	if (!at)
		return false;
	at += strlen(wanted);
	snprintf(out, 256, "%.*s", (int)strcspn(at, ","), at);
	return true;
}

/* util/mmap-alloc.c: on a 2 MiB boundary, with a page that cannot be touched behind it (since 2.6). */
static void *reserve(uint64_t length)
{
	uint64_t align = 2 << 20;
	unsigned char *at = mmap(NULL, length + align, PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t offset = -(uint64_t)at % align;

	if (at == MAP_FAILED)
		die("cannot reserve guest memory");
	if (offset)
		munmap(at, offset);
	if (align - offset > PAGE)
		munmap(at + offset + length + PAGE, align - offset - PAGE);
	return at + offset;
}

static struct part map_backend(const char *object, uint64_t length)
{
	char text[256];
	bool share = named(object, "share", text) && !strcmp(text, "on");
	bool huge = named(object, "hugetlb", text) && !strcmp(text, "on");
	struct part block = { .length = length, .fd = -1, .page_size = huge ? 2 << 20 : PAGE };
	int flags = MAP_NORESERVE;

	if (!strncmp(object, "memory-backend-memfd", 20)) {
		/* backends/hostmem-memfd.c: shared unless share=off (since 2.12). */
		share = !(named(object, "share", text) && !strcmp(text, "off"));
		block.fd = memfd_create("memory-backend-memfd", huge ? MFD_HUGETLB : 0);
		block.backing = huge ? "hugetlb" : share ? "memfd" : "file-private";
	} else if (!strncmp(object, "memory-backend-file", 19) && named(object, "mem-path", text)) {
		block.fd = open(text, O_RDWR | O_CREAT, 0600);
		block.backing = share ? "shmem" : "file-private";
	} else {
		flags |= MAP_ANONYMOUS;
		block.backing = share ? "shmem" : "anon";
	}
	if (!(flags & MAP_ANONYMOUS) && (block.fd < 0 || ftruncate(block.fd, length)))
		die(object);
	block.host = mmap(reserve(length), length, PROT_READ | PROT_WRITE,
			  flags | MAP_FIXED | (share ? MAP_SHARED : MAP_PRIVATE), block.fd, 0);
	if (block.host == MAP_FAILED)
		die(object);
	return block;
}

/* Add a block at `offset` of all memory; what crosses the hole becomes two parts. */
static void place(struct part block, uint64_t offset, uint64_t low)
{
	while (block.length) {
		bool below = offset < low;
		struct part part = block;

		part.name = below ? "below-4g" : "above-4g";
		part.gpa = below ? offset : offset - low + FOUR_GIB;
		if (below && block.length > low - offset)
			part.length = low - offset;
		parts[part_count++] = part;
		block.host += part.length;
		block.fd_offset += part.length;
		block.length -= part.length;
		offset += part.length;
	}
}

static const char *object_of(int argc, char **argv, const char *id)
{
	char wanted[300], text[256];

	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "-object") && named(argv[i + 1], "id", text) && !strcmp(text, id))
			return argv[i + 1];
	snprintf(wanted, sizeof(wanted), "no -object has the id %s", id);
	errno = ENOENT;
	die(wanted);
}

/* hw/i386/pc_q35.c and pc_piix.c: how much lies below the hole. */
static uint64_t below_hole(const char *machine, uint64_t memory)
{
	if (strstr(machine, "q35"))
		return memory >= 0xb0000000 ? 0x80000000 : memory;
	return memory >= 0xe0000000 ? 0xc0000000 : memory;
}

void map_guest_memory(int argc, char **argv)
{
	const char *machine = last_option(argc, argv, "-machine", "") ?: "pc";
	const char *size = last_option(argc, argv, "-m", "") ?: "128";
	uint64_t memory = parse_size(strncmp(size, "size=", 5) ? size : size + 5, 1 << 20);
	uint64_t low = below_hole(machine, memory), offset = 0;
	static struct part nodes[NODES];
	char id[256], text[256];
	int node = -1;

	/* Blocks are made in the order of the options and laid out in the order of the nodes. */
	for (int i = 1; i + 1 < argc; i++) {
		if (strcmp(argv[i], "-numa") || !named(argv[i + 1], "memdev", id))
			continue;
		const char *object = object_of(argc, argv, id);

		node = named(argv[i + 1], "nodeid", text) ? atoi(text) : node + 1;
		if (node < 0 || node >= NODES)
			die("node");
		nodes[node] = map_backend(object, named(object, "size", text) ? parse_size(text, 1) : 0);
	}
	for (node = 0; node < NODES; node++) {
		uint64_t length = nodes[node].length;

		place(nodes[node], offset, low);
		offset += length;
	}
	if (offset)
		return;
	if (named(machine, "memory-backend", id))
		place(map_backend(object_of(argc, argv, id), memory), 0, low);
	else
		place(map_backend("", memory), 0, low);
}

long punch(struct part *part, uint64_t start, uint64_t length)
{
	return counted(fallocate(part->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 part->fd_offset + start, length),
		       length);
}
