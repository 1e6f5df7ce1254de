/*
 * What the stand-ins share: commands on stdin, one JSON line on stdout for each, counts of what was
 * really done. A stand-in ends when its stdin closes, so none outlives its test.
 */
#ifndef STANDIN_CONTROL_H
#define STANDIN_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096UL
#define MAX_ARGUMENTS 4096

/* What one command did; printed and set to zero after each. */
struct counts {
	uint64_t requests; /* virtqueue buffers, from available to used */
	uint64_t pages;    /* PFNs the guest put into them; 4 KiB pages of its reports and hints */
	uint64_t rejected; /* of these, outside guest memory */
	uint64_t calls;    /* system calls that discard, remap or advise guest memory */
	uint64_t failed;   /* of these, with an error */
	uint64_t call_bytes; /* their lengths, added up */
	uint64_t noise;    /* calls of the same kinds that are not the balloon's */
};
extern struct counts counts;

struct command {
	const char *name;
	void (*run)(int argc, const uint64_t *argv);
	int least_arguments;
};

/* One contiguous part of guest memory, as the ready line tells it. */
struct part {
	const char *name;
	uint64_t gpa;
	unsigned char *host;
	uint64_t length;
	const char *backing;
	int fd;              /* -1 for none */
	uint64_t fd_offset;
	uint64_t page_size;
};

/* Count one discarding call and pass its result on. */
long counted(long result, uint64_t length);

/* Return the part that holds [gpa, gpa + length), or NULL. */
struct part *part_at(struct part *parts, int count, uint64_t gpa, uint64_t length);

/* Read `512M`, `2G`, `1048576k`; `unit` is what a bare number counts. */
uint64_t parse_size(const char *text, uint64_t unit);

/* CLOCK_MONOTONIC. */
uint64_t now_ns(void);

void die(const char *what) __attribute__((noreturn));

/* Print the ready line, then carry out commands until `quit` or the end of stdin. */
int serve(const struct command *commands, const struct part *parts, int part_count);

#endif
