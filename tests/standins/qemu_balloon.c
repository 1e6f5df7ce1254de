/*
 * The device: the exported functions and trace-state variables of a distribution's QEMU, static queue
 * handlers in one file with their realize function, and QEMU's way to discard. A macro spoils it:
 *   TWO_OUTPUTS, TWO_REPORTS   a second function fits as well
 */
#define _GNU_SOURCE
#include "qemu_balloon.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

const char version_text[] __attribute__((used)) = "QEMU emulator version 7.2.0 (stand-in)\n";

uint16_t _TRACE_VIRTIO_BALLOON_HANDLE_OUTPUT_DSTATE;
uint16_t _TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE;

static VirtQueue queues[8];
static int queue_count;
static VirtQueueElement *held_stats;
VirtQueue *inflate_queue, *deflate_queue, *stats_queue, *hint_queue, *report_queue, *other_queue;
uint64_t pages_to_hang;
int discard_call = -1, discard_advice;

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

/* As other VMMs, or QEMU of another version, may. */
static int discard_otherwise(struct part *block, uint64_t start, size_t length)
{
	struct iovec vector = { block->host + start, length };
	long result = -1;
	int self;

	switch (discard_call) {
	case 0:
		result = madvise(vector.iov_base, length, discard_advice);
		break;
	case 1:
		result = fallocate(block->fd, discard_advice, block->fd_offset + start, length);
		break;
	case 2:
		self = syscall(SYS_pidfd_open, getpid(), 0);
		result = syscall(SYS_process_madvise, self, &vector, 1, discard_advice, 0);
		close(self);
		break;
	case 3:
		result = (long)mmap(vector.iov_base, length, PROT_READ | PROT_WRITE, discard_advice,
				    -1, 0);
	}
	return counted(result < 0 ? -1 : 0, length);
}

/* physmem.c ram_block_discard_range, 7.2: hole punch where a file is behind, then madvise. */
EXPORTED int ram_block_discard_range(struct part *block, uint64_t start, size_t length)
{
	unsigned char *host = block->host + start;
	int result = 0;

	if (start % block->page_size || length % block->page_size)
		return -1;
	if (discard_call >= 0)
		return discard_otherwise(block, start, length);
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

static volatile int64_t told;

__attribute__((noipa)) static void trace_event(void) {}

/* As in QEMU, what they are told has to outlive a call: they begin with a push. */
EXPORTED void qmp_balloon(int64_t target, void **error)
{
	(void)error;
	trace_event();
	told = target;
}

EXPORTED void qapi_event_send_balloon_change(int64_t actual)
{
	trace_event();
	told = actual;
}

EXPORTED void runstate_set(int state)
{
	trace_event();
	told = state;
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

#ifdef TWO_OUTPUTS
static void second_output(void *device, VirtQueue *queue)
{
	VirtQueueElement *element = virtqueue_pop(queue, sizeof(*element));

	if (_TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE)
		memory_region_find(device, 0, PAGE);
	virtqueue_push(queue, element, 0);
	free(element);
}
#endif

#ifdef TWO_REPORTS
static void second_report(void *device, VirtQueue *queue)
{
	VirtQueueElement *element = virtqueue_pop(queue, sizeof(*element));

	ram_block_discard_range(device, 0, PAGE);
	virtqueue_push(queue, element, 0);
	free(element);
}
#endif

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
#ifdef TWO_OUTPUTS
	virtio_add_queue(device, 32, second_output);
#endif
#ifdef TWO_REPORTS
	virtio_add_queue(device, 32, second_report);
#endif
}

void realize(bool hint, bool report)
{
	virtio_balloon_device_realize(parts, hint, report);
	other_queue = virtio_add_queue(parts, 256, virtio_net_handle_tx);
}
