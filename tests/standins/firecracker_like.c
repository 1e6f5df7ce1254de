/*
 * A program that does with memory what Firecracker's balloon does (src/vmm/src/devices/virtio/balloon,
 * 1.13): it collects PFNs of up to 2048, sorts, drops doubles, merges, and discards each range, over
 * several mapped regions of guest memory. Nothing in it is known by name. "The guest" is commands on
 * stdin.
 *
 *   inflate FIRST_PFN COUNT STEP   descriptors of 256 PFNs, all available at once
 *   deflate FIRST_PFN COUNT STEP   taken note of; no system call
 *   report GPA LENGTH ...          one discard for each block
 *   garbage PFN ...                one descriptor of just these
 *   flood SECONDS [PAGES_PER_S [COUNT STEP]]
 *                                  inflate the same pages, 256 in a row, as fast as possible or so fast
 *   touch GPA LENGTH               the guest writes to its memory
 *   noise COUNT                    discards of malloc's arenas and of a mapping of its own
 *
 * Takes --id, --api-sock, --config-file (its "mem_size_mib") and others of Firecracker, and its own:
 *   --mem-size-mib N               128 unless a configuration says otherwise
 *   --hole-mib N                   PCI hole below 4 GiB: 1024 (since 1.13) or 768 (before)
 *   --backing anon|memfd
 *   --discard madvise|remap|punch|vector
 * Every batch also discards a page of its own, which is not the guest's and counted as noise.
 */
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FOUR_GIB (4UL << 30)
#define ALIGNMENT (2UL << 20)
#define BATCH 2048
#define PIECE 256
#define VECTOR 1024

struct range {
	struct part *part;
	uint64_t offset, length;
};

static struct part parts[2];
static int part_count;
static const char *backing = "anon", *discard = "madvise";
static unsigned char *arena;
static struct range ranges[BATCH];
static int range_count, self_fd = -1;

static const char *option(int argc, char **argv, const char *name, const char *otherwise)
{
	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], name))
			return argv[i + 1];
	return otherwise;
}

static uint64_t configured_mib(const char *path)
{
	static char text[65536];
	FILE *file = fopen(path, "r");
	char *at;

	if (!file)
		die(path);
	text[fread(text, 1, sizeof(text) - 1, file)] = 0;
	fclose(file);
	at = strstr(text, "\"mem_size_mib\":");
	return at ? strtoull(at + 15, NULL, 10) : 128;
}

/* Firecracker maps each region by itself, on a 2 MiB boundary, over a reservation (vstate/memory.rs). */
static void map_region(const char *name, uint64_t gpa, uint64_t length, int fd, uint64_t offset)
{
	struct part *part = &parts[part_count++];
	unsigned char *reserved = mmap(NULL, length + ALIGNMENT - PAGE, PROT_NONE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	unsigned char *host = (void *)(((uint64_t)reserved + ALIGNMENT - 1) & ~(ALIGNMENT - 1));
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE;

	if (reserved == MAP_FAILED ||
	    mmap(host, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, offset) == MAP_FAILED)
		die("cannot map guest memory");
	if (host > reserved)
		munmap(reserved, host - reserved);
	if (host - reserved < (long)(ALIGNMENT - PAGE))
		munmap(host + length, ALIGNMENT - PAGE - (host - reserved));
	*part = (struct part){ name, gpa, host, length, backing, fd, offset, PAGE };
}

static void map_memory(uint64_t memory, uint64_t hole)
{
	uint64_t low = FOUR_GIB - hole;
	int fd = -1;

	if (low > memory)
		low = memory;
	if (!strcmp(backing, "memfd")) {
		fd = memfd_create("guest_mem", 0);
		if (fd < 0 || ftruncate(fd, memory))
			die("memfd");
	}
	map_region("below-4g", 0, low, fd, 0);
	if (memory > low)
		map_region("above-4g", FOUR_GIB, memory - low, fd, low);
	/* The kernel's setup header, in the boot parameters at GPA 0x7000. */
	memcpy(parts[0].host + 0x7202, "HdrS", 4);
}

static void discard_vector(void)
{
	static struct iovec vector[VECTOR];

	for (int done = 0; done < range_count; done += VECTOR) {
		int count = range_count - done < VECTOR ? range_count - done : VECTOR;
		uint64_t length = 0;

		for (int i = 0; i < count; i++) {
			struct range *range = &ranges[done + i];

			vector[i] = (struct iovec){ range->part->host + range->offset, range->length };
			length += range->length;
		}
		counted(syscall(SYS_process_madvise, self_fd, vector, count, MADV_DONTNEED, 0), length);
	}
}

static void discard_range(struct range *range)
{
	unsigned char *host = range->part->host + range->offset;

	if (!strcmp(discard, "remap")) {
		void *at = mmap(host, range->length, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);

		counted(at == MAP_FAILED ? -1 : 0, range->length);
	} else if (!strcmp(discard, "punch")) {
		counted(fallocate(range->part->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  range->part->fd_offset + range->offset, range->length),
			range->length);
	} else {
		counted(madvise(host, range->length, MADV_DONTNEED), range->length);
	}
}

static void discard_ranges(void)
{
	if (!strcmp(discard, "vector"))
		discard_vector();
	else
		for (int i = 0; i < range_count; i++)
			discard_range(&ranges[i]);
	range_count = 0;
	counts.noise += !madvise(arena, PAGE, MADV_DONTNEED);
}

static void add_range(uint64_t gpa, uint64_t length)
{
	struct part *part = part_at(parts, part_count, gpa, length);

	if (part)
		ranges[range_count++] = (struct range){ part, gpa - part->gpa, length };
	else
		counts.rejected += length / PAGE;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void handle_batch(uint32_t *pfns, int count)
{
	uint64_t first, pages;

	qsort(pfns, count, sizeof(*pfns), compare);
	for (int i = 0; i < count;) {
		first = pfns[i];
		for (pages = 1; ++i < count && pfns[i] <= first + pages;)
			pages += pfns[i] == first + pages;
		add_range(first << 12, pages << 12);
	}
	discard_ranges();
}

static void run_inflate(int argc, const uint64_t *argv)
{
	static uint32_t pfns[BATCH];
	int64_t step = argc > 2 ? (int64_t)argv[2] : 1;
	int filled = 0;

	for (uint64_t i = 0; i < argv[1]; i++) {
		pfns[filled++] = argv[0] + (int64_t)i * step;
		if (filled == BATCH || i + 1 == argv[1]) {
			handle_batch(pfns, filled);
			filled = 0;
		}
	}
	counts.pages += argv[1];
	counts.requests += (argv[1] + PIECE - 1) / PIECE;
}

static void run_deflate(int argc, const uint64_t *argv)
{
	(void)argc;
	counts.pages += argv[1];
	counts.requests += (argv[1] + PIECE - 1) / PIECE;
}

static void run_report(int argc, const uint64_t *argv)
{
	for (int i = 0; i + 1 < argc; i += 2) {
		counts.pages += argv[i + 1] / PAGE;
		add_range(argv[i], argv[i + 1]);
	}
	discard_ranges();
	counts.requests++;
}

static void run_garbage(int argc, const uint64_t *argv)
{
	uint32_t pfns[BATCH];
	int count = argc < BATCH ? argc : BATCH;

	for (int i = 0; i < count; i++)
		pfns[i] = argv[i];
	counts.pages += count;
	counts.requests++;
	handle_batch(pfns, count);
}

static void run_flood(int argc, const uint64_t *argv)
{
	const uint64_t pages[] = { 4096, argc > 2 ? argv[2] : PIECE, argc > 3 ? argv[3] : 1 };
	uint64_t begin = now_ns(), end = begin + argv[0] * 1000000000, sent = 0;

	while (now_ns() < end) {
		run_inflate(3, pages);
		sent += pages[1];
		while (argc > 1 && now_ns() < begin + sent * 1000000000 / argv[1])
			;
	}
}

static void run_touch(int argc, const uint64_t *argv)
{
	struct part *part = part_at(parts, part_count, argv[0], argv[1]);

	(void)argc;
	if (part)
		memset(part->host + (argv[0] - part->gpa), 0x5a, argv[1]);
}

static void run_noise(int argc, const uint64_t *argv)
{
	(void)argc;
	for (uint64_t i = 0; i < argv[0]; i++) {
		void *block = malloc(64 * PAGE);

		memset(block, 1, 64 * PAGE);
		counts.noise += !madvise((void *)(((uint64_t)block + PAGE) & ~(PAGE - 1)), PAGE,
					 MADV_DONTNEED);
		free(block);
		counts.noise += !madvise(arena, PAGE, MADV_DONTNEED);
	}
}

static const struct command commands[] = {
	{ "inflate", run_inflate, 2 }, { "deflate", run_deflate, 2 }, { "report", run_report, 2 },
	{ "garbage", run_garbage, 1 }, { "flood", run_flood, 1 },     { "touch", run_touch, 2 },
	{ "noise", run_noise, 1 },     {},
};

int main(int argc, char **argv)
{
	const char *config = option(argc, argv, "--config-file", NULL);
	const char *mib = option(argc, argv, "--mem-size-mib", NULL);

	backing = option(argc, argv, "--backing", backing);
	discard = option(argc, argv, "--discard", discard);
	self_fd = syscall(SYS_pidfd_open, getpid(), 0);
	arena = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map_memory((mib ? parse_size(mib, 1) : config ? configured_mib(config) : 128) << 20,
		   parse_size(option(argc, argv, "--hole-mib", "1024"), 1) << 20);
	return serve(commands, parts, part_count);
}
