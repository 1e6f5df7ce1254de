/*
 * A program with the shape of QEMU's virtio-balloon, without a guest: the exported functions and
 * trace-state variables of a distribution's QEMU, static queue handlers, QEMU's element and queue
 * layouts (4.2 and later), and its way to discard. "The guest" is commands on stdin.
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
 *   size PFNS                      PFNs per request from now on
 *   driver GPA                     where requests lie in guest memory from now on
 *   touch GPA LENGTH               the guest writes to its memory
 *   noise COUNT                    another device's requests, and discards outside any request
 *   target BYTES, actual BYTES, runstate N
 *
 * Takes QEMU's -m, -machine, -object memory-backend-*, -numa node,memdev= and -device
 * virtio-balloon-pci,free-page-hint=,free-page-reporting=; any other option is taken and ignored.
 */
#define _GNU_SOURCE
#include "qemu_memory.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

/* noipa: what other functions see of these is an address and a call, as across QEMU's files. */
#define EXPORTED __attribute__((noipa, used))

const char version_text[] __attribute__((used)) = "QEMU emulator version 7.2.0 (stand-in)\n";

typedef struct VirtQueue VirtQueue;

/* VirtQueueElement of include/hw/virtio/virtio.h, QEMU 4.2 and later. */
typedef struct {
	unsigned int index, len, ndescs, out_num, in_num;
	bool in_order_filled;
	uint64_t *in_addr, *out_addr;
	struct iovec *in_sg, *out_sg;
} VirtQueueElement;

/* Only where queue_index and handle_output lie is QEMU's (hw/virtio/virtio.c, 5.2 to 11.1). */
struct VirtQueue {
	VirtQueueElement *waiting[2];
	char pad[0x48 - 16];
	uint16_t queue_index;
	char pad2[0x58 - 0x4a];
	void (*handle_output)(void *device, VirtQueue *queue);
};
_Static_assert(offsetof(VirtQueue, queue_index) == 0x48, "as in QEMU");
_Static_assert(offsetof(VirtQueueElement, out_sg) == 48, "as in QEMU");

uint16_t _TRACE_VIRTIO_BALLOON_HANDLE_OUTPUT_DSTATE;
uint16_t _TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE;

static VirtQueue queues[8];
static int queue_count;
static VirtQueue *inflate_queue, *deflate_queue, *stats_queue, *hint_queue, *report_queue, *other_queue;
static VirtQueueElement *held_stats;
static uint64_t request_pfns = 256, driver_gpa = 1 << 20, pages_to_hang;

EXPORTED VirtQueue *virtio_add_queue(void *device, int size, void (*handle)(void *, VirtQueue *))
{
	VirtQueue *queue = &queues[queue_count];

	(void)device, (void)size;
	queue->queue_index = queue_count++;
	queue->handle_output = handle;
	return queue;
}

EXPORTED int virtio_get_queue_index(VirtQueue *queue)
{
	return queue->queue_index;
}

EXPORTED void *virtqueue_pop(VirtQueue *queue, size_t size)
{
	VirtQueueElement *element = queue->waiting[0];

	(void)size;
	queue->waiting[0] = queue->waiting[1];
	queue->waiting[1] = NULL;
	return element;
}

EXPORTED void virtqueue_push(VirtQueue *queue, const VirtQueueElement *element, unsigned int length)
{
	(void)element, (void)length;
	counts.requests += queue != other_queue;
}

EXPORTED struct section memory_region_find(void *system_memory, uint64_t gpa, uint64_t size)
{
	struct section section = { part_at(system_memory, part_count, gpa, size), 0 };

	if (pages_to_hang && !--pages_to_hang)
		raise(SIGSTOP);
	if (section.part)
		section.offset = gpa - section.part->gpa;
	return section;
}

/* physmem.c ram_block_discard_range, 7.2: hole punch where a file is behind, then madvise. */
EXPORTED int ram_block_discard_range(struct part *block, uint64_t start, size_t length)
{
	unsigned char *host = block->host + start;
	int result = 0;

	if (start % block->page_size || length % block->page_size)
		return -1;
	if (block->fd >= 0)
		result = punch(block, start, length);
	if (block->page_size == PAGE) {
		bool remove = block->fd < 0 && !strcmp(block->backing, "shmem");

		result = counted(madvise(host, length, remove ? MADV_REMOVE : MADV_DONTNEED), length);
	}
	return result;
}

EXPORTED void qemu_guest_free_page_hint(void *host, size_t length)
{
	(void)host;
	counts.pages += length / PAGE; /* clears dirty bits of a migration; no system call */
}

EXPORTED void qmp_balloon(int64_t target, void **error)
{
	(void)target, (void)error;
}

EXPORTED void qapi_event_send_balloon_change(int64_t actual)
{
	(void)actual;
}

EXPORTED void runstate_set(int state)
{
	(void)state;
}

/* The bits of one host page, of one request: virtio-balloon.c PartiallyBalloonedPage since 4.1. */
struct partial {
	struct part *block;
	uint64_t start, seen[8];
	unsigned int count;
};

static void inflate_page(struct partial *partial, struct section section)
{
	struct part *block = section.part;
	uint64_t start = section.offset / block->page_size * block->page_size;
	uint64_t bit = (section.offset - start) / PAGE;

	if (block->page_size == PAGE) {
		ram_block_discard_range(block, section.offset, PAGE);
		return;
	}
	if (partial->block != block || partial->start != start)
		*partial = (struct partial){ .block = block, .start = start };
	if (partial->seen[bit / 64] >> bit % 64 & 1)
		return;
	partial->seen[bit / 64] |= 1ULL << bit % 64;
	if (++partial->count == block->page_size / PAGE)
		ram_block_discard_range(block, start, block->page_size);
}

static void deflate_page(struct section section)
{
	struct part *block = section.part;
	uint64_t start = section.offset / block->page_size * block->page_size;

	counted(madvise(block->host + start, block->page_size, MADV_WILLNEED), block->page_size);
}

static void virtio_balloon_handle_output(void *device, VirtQueue *queue)
{
	VirtQueueElement *element;

	while ((element = virtqueue_pop(queue, sizeof(*element)))) {
		struct partial partial = {};
		const uint32_t *pfns = element->out_sg[0].iov_base;

		for (size_t i = 0; i < element->out_sg[0].iov_len / 4; i++) {
			uint64_t gpa = (uint64_t)pfns[i] << 12;
			struct section section = memory_region_find(device, gpa, PAGE);

			counts.pages++;
			if (!section.part) {
				if (_TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE)
					fprintf(stderr, "virtio_balloon_bad_addr %lx\n", gpa);
				counts.rejected++;
				continue;
			}
			if (_TRACE_VIRTIO_BALLOON_HANDLE_OUTPUT_DSTATE)
				fprintf(stderr, "virtio_balloon_handle_output %lx\n", gpa);
			if (queue == inflate_queue)
				inflate_page(&partial, section);
			else if (queue == deflate_queue)
				deflate_page(section);
		}
		virtqueue_push(queue, element, 0);
		free(element);
	}
}

static void virtio_balloon_handle_report(void *device, VirtQueue *queue)
{
	VirtQueueElement *element;

	while ((element = virtqueue_pop(queue, sizeof(*element)))) {
		for (unsigned int i = 0; i < element->in_num; i++) {
			uint64_t length = element->in_sg[i].iov_len;
			struct part *block = part_at(device, part_count, element->in_addr[i], length);

			counts.pages += length / PAGE;
			ram_block_discard_range(block, element->in_addr[i] - block->gpa, length);
		}
		virtqueue_push(queue, element, 0);
		free(element);
	}
}

/* QEMU keeps the buffer until its next poll; a second one sends the first back. */
static void virtio_balloon_receive_stats(void *device, VirtQueue *queue)
{
	VirtQueueElement *element = virtqueue_pop(queue, sizeof(*element));

	(void)device;
	if (!element)
		return;
	if (held_stats) {
		virtqueue_push(queue, held_stats, 0);
		free(held_stats);
	}
	held_stats = element;
}

static void virtio_balloon_get_free_page_hints(void *device, VirtQueue *queue)
{
	VirtQueueElement *element;

	(void)device;
	while ((element = virtqueue_pop(queue, sizeof(*element)))) {
		for (unsigned int i = 0; i < element->in_num; i++)
			qemu_guest_free_page_hint(element->in_sg[i].iov_base, element->in_sg[i].iov_len);
		virtqueue_push(queue, element, 0);
		free(element);
	}
}

static void virtio_net_handle_tx(void *device, VirtQueue *queue)
{
	VirtQueueElement *element;

	(void)device;
	while ((element = virtqueue_pop(queue, sizeof(*element)))) {
		virtqueue_push(queue, element, 0);
		free(element);
	}
}

__attribute__((noipa)) static void virtio_balloon_device_realize(void *device, bool hint, bool report)
{
	inflate_queue = virtio_add_queue(device, 128, virtio_balloon_handle_output);
	deflate_queue = virtio_add_queue(device, 128, virtio_balloon_handle_output);
	stats_queue = virtio_add_queue(device, 128, virtio_balloon_receive_stats);
	if (hint)
		hint_queue = virtio_add_queue(device, 128, virtio_balloon_get_free_page_hints);
	if (report)
		report_queue = virtio_add_queue(device, 32, virtio_balloon_handle_report);
}

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

static const struct command commands[] = {
	{ "inflate", run_inflate, 2 }, { "deflate", run_deflate, 2 }, { "report", run_report, 2 },
	{ "hint", run_hint, 2 },       { "stats", run_stats, 0 },     { "garbage", run_garbage, 1 },
	{ "poll", run_poll, 1 },       { "hang", run_hang, 2 },
	{ "flood", run_flood, 1 },     { "size", run_size, 1 },       { "driver", run_driver, 1 },
	{ "touch", run_touch, 2 },     { "noise", run_noise, 1 },     { "target", run_target, 1 },
	{ "actual", run_actual, 1 },   { "runstate", run_runstate, 1 }, {},
};

int main(int argc, char **argv)
{
	const char *device = last_option(argc, argv, "-device", "virtio-balloon-pci");

	map_guest_memory(argc, argv);
	virtio_balloon_device_realize(parts, device && strstr(device, "free-page-hint=on"),
				      device && strstr(device, "free-page-reporting=on"));
	other_queue = virtio_add_queue(parts, 256, virtio_net_handle_tx);
	return serve(commands, parts, part_count);
}
