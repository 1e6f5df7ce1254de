/*
 * A program with the shape of QEMU's virtio-balloon (qemu_balloon.c), without a guest: "the guest"
 * is commands on stdin.
 *
 *   inflate FIRST_PFN COUNT STEP   requests of 256 PFNs; STEP -1 goes down
 *   deflate FIRST_PFN COUNT STEP
 *   report GPA LENGTH ...          one free page report of up to 32 blocks
 *   hint GPA LENGTH ...            one buffer for each block, as Linux sends free page hints
 *   poll COUNT                     the bottom half of the hints looks at their empty queue so often
 *   stats                          one statistics buffer
 *   garbage PFN ...                one inflate request of just these
 *   flood SECONDS [PAGES_PER_S]    inflate and deflate the same 256 pages, as fast as possible or so fast
 *   hang FIRST_PFN COUNT           inflate, and get SIGSTOP in the middle of the first request
 *   by CALL ADVICE                 discard by one call from now on: 0 madvise, 1 fallocate,
 *                                  2 process_madvise, 3 mmap; its advice, mode or flags
 *   size PFNS                      PFNs per request from now on
 *   driver GPA                     where requests lie in guest memory from now on
 *   touch GPA LENGTH               the guest writes to its memory
 *   noise COUNT                    another device's requests, and discards outside any request
 *   target BYTES, actual BYTES, runstate N
 *   exec                           run itself in its place, with `-incoming defer`, as cpr-exec does
 *   fade                           end as a process with much memory does: there until stdin closes,
 *                                  but without its program
 *
 * Takes QEMU's -m, -machine, -object memory-backend-*, -numa node,memdev= and -device
 * virtio-balloon-pci,free-page-hint=,free-page-reporting=; any other option is taken and ignored.
 */
#define _GNU_SOURCE
#include "qemu_balloon.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t request_pfns = 256, driver_gpa = 1 << 20;
static char **own_arguments;
static int own_argument_count;

static void *host_of(uint64_t gpa, uint64_t length)
{
	struct part *part = part_at(parts, part_count, gpa, length);

	return part ? part->host + (gpa - part->gpa) : NULL;
}

/* One element with one device-readable descriptor at the driver's place in guest memory. */
static void send_out(VirtQueue *queue, uint64_t length)
{
	struct {
		VirtQueueElement element;
		uint64_t address;
		struct iovec iov;
	} *made = calloc(1, sizeof(*made));

	made->element.out_num = made->element.ndescs = 1;
	made->element.out_addr = &made->address;
	made->element.out_sg = &made->iov;
	made->address = driver_gpa;
	made->iov = (struct iovec){ host_of(driver_gpa, length), length };
	queue->waiting[0] = &made->element;
	queue->handle_output(parts, queue);
}

/* One element with `count` device-writable descriptors, pairs of GPA and length. */
static void send_in(VirtQueue *queue, unsigned int count, const uint64_t *blocks)
{
	struct {
		VirtQueueElement element;
		uint64_t address[32];
		struct iovec iov[32];
	} *made = calloc(1, sizeof(*made));

	for (unsigned int i = 0; i < count && i < 32; i++) {
		void *host = host_of(blocks[2 * i], blocks[2 * i + 1]);

		if (!host) {
			/* virtqueue_pop maps every descriptor: QEMU would never hand this one on. */
			counts.rejected += blocks[2 * i + 1] / PAGE;
			continue;
		}
		made->address[made->element.in_num] = blocks[2 * i];
		made->iov[made->element.in_num++] = (struct iovec){ host, blocks[2 * i + 1] };
	}
	made->element.in_addr = made->address;
	made->element.in_sg = made->iov;
	queue->waiting[0] = &made->element;
	queue->handle_output(parts, queue);
}

static void send_pfns(VirtQueue *queue, uint64_t first, uint64_t count, int64_t step)
{
	uint32_t *pfns = host_of(driver_gpa, request_pfns * 4);

	for (uint64_t done = 0; done < count;) {
		uint64_t part = count - done < request_pfns ? count - done : request_pfns;

		for (uint64_t i = 0; i < part; i++)
			pfns[i] = first + (int64_t)(done + i) * step;
		send_out(queue, part * 4);
		done += part;
	}
}

static void run_inflate(int argc, const uint64_t *argv)
{
	send_pfns(inflate_queue, argv[0], argv[1], argc > 2 ? (int64_t)argv[2] : 1);
}

static void run_hang(int argc, const uint64_t *argv)
{
	(void)argc;
	pages_to_hang = request_pfns / 2;
	send_pfns(inflate_queue, argv[0], argv[1], 1);
}

static void run_deflate(int argc, const uint64_t *argv)
{
	send_pfns(deflate_queue, argv[0], argv[1], argc > 2 ? (int64_t)argv[2] : 1);
}

static void run_report(int argc, const uint64_t *argv)
{
	if (report_queue)
		send_in(report_queue, argc / 2, argv);
}

static void run_hint(int argc, const uint64_t *argv)
{
	for (int i = 0; hint_queue && i + 1 < argc; i += 2)
		send_in(hint_queue, 1, argv + i);
}

static void run_poll(int argc, const uint64_t *argv)
{
	(void)argc;
	for (uint64_t i = 0; hint_queue && i < argv[0]; i++)
		hint_queue->handle_output(parts, hint_queue);
}

static void run_stats(int argc, const uint64_t *argv)
{
	(void)argc, (void)argv;
	memset(host_of(driver_gpa, 100), 0, 100); /* 10 packed statistics of 10 bytes */
	send_out(stats_queue, 100);
}

static void run_garbage(int argc, const uint64_t *argv)
{
	uint32_t *pfns = host_of(driver_gpa, argc * 4);

	for (int i = 0; i < argc; i++)
		pfns[i] = argv[i];
	send_out(inflate_queue, argc * 4);
}

static void run_flood(int argc, const uint64_t *argv)
{
	uint64_t begin = now_ns(), end = begin + argv[0] * 1000000000, sent = 0;

	while (now_ns() < end) {
		send_pfns(inflate_queue, 4096, request_pfns, 1);
		send_pfns(deflate_queue, 4096, request_pfns, 1);
		sent += 2 * request_pfns;
		while (argc > 1 && now_ns() < begin + sent * 1000000000 / argv[1])
			;
	}
}

static void run_size(int argc, const uint64_t *argv)
{
	(void)argc;
	request_pfns = argv[0];
}

static void run_driver(int argc, const uint64_t *argv)
{
	(void)argc;
	driver_gpa = argv[0];
}

static void run_by(int argc, const uint64_t *argv)
{
	(void)argc;
	discard_call = argv[0];
	discard_advice = argv[1];
}

static void run_touch(int argc, const uint64_t *argv)
{
	(void)argc;
	memset(host_of(argv[0], argv[1]), 0x5a, argv[1]);
}

static void run_noise(int argc, const uint64_t *argv)
{
	void *own = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)argc;
	for (uint64_t i = 0; i < argv[0]; i++) {
		send_out(other_queue, 4);
		counts.noise += !madvise(own, PAGE, MADV_DONTNEED);
	}
	munmap(own, 2 * PAGE);
}

static void run_target(int argc, const uint64_t *argv)
{
	(void)argc;
	qmp_balloon(argv[0], NULL);
}

static void run_actual(int argc, const uint64_t *argv)
{
	(void)argc;
	qapi_event_send_balloon_change(argv[0]);
}

static void run_runstate(int argc, const uint64_t *argv)
{
	(void)argc;
	runstate_set(argv[0]);
}

/* No reply: what comes next is the ready line of the program that runs then. */
static void run_exec(int argc, const uint64_t *argv)
{
	char **next = calloc(own_argument_count + 3, sizeof(*next)), path[PATH_MAX] = "";

	(void)argc, (void)argv;
	memcpy(next, own_arguments, own_argument_count * sizeof(*next));
	if (!last_option(own_argument_count, own_arguments, "-incoming", "")) {
		next[own_argument_count] = "-incoming";
		next[own_argument_count + 1] = "defer";
	}
	if (readlink("/proc/self/exe", path, sizeof(path) - 1) > 0)
		execv(path, next);
	die("exec");
}

static void *wait_for_end(void *unused)
{
	char byte;

	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	_exit(0);
	return unused;
}

/* No reply: the thread that would give it is gone, and with it what /proc/PID/exe shows. */
static void run_fade(int argc, const uint64_t *argv)
{
	pthread_t other;

	(void)argc, (void)argv;
	if (pthread_create(&other, NULL, wait_for_end, NULL))
		die("pthread_create");
	syscall(SYS_exit, 0);
}

static const struct command commands[] = {
	{ "inflate", run_inflate, 2 }, { "deflate", run_deflate, 2 }, { "report", run_report, 2 },
	{ "hint", run_hint, 2 },       { "stats", run_stats, 0 },     { "garbage", run_garbage, 1 },
	{ "poll", run_poll, 1 },       { "hang", run_hang, 2 },
	{ "flood", run_flood, 1 },     { "size", run_size, 1 },       { "driver", run_driver, 1 },
	{ "touch", run_touch, 2 },     { "noise", run_noise, 1 },     { "target", run_target, 1 },
	{ "actual", run_actual, 1 },   { "runstate", run_runstate, 1 }, { "exec", run_exec, 0 },
	{ "fade", run_fade, 0 },       { "by", run_by, 2 },           {},
};

int main(int argc, char **argv)
{
	const char *device = last_option(argc, argv, "-device", "virtio-balloon-pci");

	own_arguments = argv;
	own_argument_count = argc;
	map_guest_memory(argc, argv);
	realize(device && strstr(device, "free-page-hint=on"),
		device && strstr(device, "free-page-reporting=on"));
	return serve(commands, parts, part_count);
}
