/*
 * The exported symbols of QEMU and the static handlers of its balloon, to be looked for in a file and
 * never run. Macros spoil it:
 *   TWO_OUTPUTS, TWO_REPORTS, TWO_STATS   a second function fits as well
 *   NO_REPORTS, NO_HINTS                  a QEMU before 5.1, before 4.0
 *   TWO_PUSHES                            the report handler returns its element in two places
 *   TWIN                                  only a static function of the same name, for a second file
 */
#include <stddef.h>

#define EXPORT __attribute__((noinline, noipa))
#define HANDLER static __attribute__((noinline, noipa))

typedef void handler(void *device, void *queue);

#ifdef TWIN
void *virtqueue_pop(void *queue, size_t size);
void virtqueue_push(void *queue, void *element, unsigned length);

HANDLER void virtio_balloon_handle_output(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	if (element)
		virtqueue_push(queue, element, device != NULL);
}

handler *twin(void) { return virtio_balloon_handle_output; }
#else
unsigned short _TRACE_VIRTIO_BALLOON_HANDLE_OUTPUT_DSTATE;
unsigned short _TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE;
volatile long sink;
handler *volatile registered;

EXPORT void *virtqueue_pop(void *queue, size_t size) { sink += size; return queue; }
EXPORT void virtqueue_push(void *queue, void *element, unsigned length)
{
	sink += length + (queue == element);
}
EXPORT void memory_region_find(unsigned long gpa) { sink += gpa; }
EXPORT void ram_block_discard_range(unsigned long offset) { sink -= offset; }
EXPORT void iov_to_buf_full(void *iov) { sink ^= (long)iov; }
EXPORT void qemu_guest_free_page_hint(void *address, size_t length) { sink ^= (long)address + length; }
EXPORT void virtio_error(void *device) { sink |= (long)device; }
EXPORT void virtio_notify(void *device) { sink &= (long)device; }
EXPORT void virtio_add_queue(void *device, handler *function)
{
	sink += (long)device;
	registered = function;
}

HANDLER void virtio_balloon_handle_output(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	if (!element)
		return;
	if (_TRACE_VIRTIO_BALLOON_HANDLE_OUTPUT_DSTATE)
		sink += 1;
	memory_region_find((unsigned long)device);
	virtqueue_push(queue, element, 0);
	virtio_notify(device);
}

#ifdef TWO_OUTPUTS
HANDLER void second_output(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	if (_TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE)
		memory_region_find((unsigned long)device);
	virtqueue_push(queue, element, 0);
	virtio_notify(device);
}
#endif

#ifndef NO_REPORTS
HANDLER void virtio_balloon_handle_report(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	if (!element)
		return;
#ifdef TWO_PUSHES
	if (sink & 1) {
		virtqueue_push(queue, element, 1);
		virtio_notify(queue);
		sink *= 3;
		return;
	}
#endif
	ram_block_discard_range((unsigned long)element);
	virtqueue_push(queue, element, 0);
	virtio_notify(device);
}
#endif

#ifdef TWO_REPORTS
HANDLER void second_report(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	ram_block_discard_range((unsigned long)device);
	virtqueue_push(queue, element, 0);
	virtio_notify(queue);
}
#endif

HANDLER void virtio_balloon_receive_stats(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	if (sink) {
		virtqueue_push(queue, device, 0);
		virtio_notify(device);
	}
	iov_to_buf_full(element);
	sink += 5;
}

#ifdef TWO_STATS
HANDLER void second_stats(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	iov_to_buf_full(device);
	virtqueue_push(queue, element, 0);
	sink += 7;
}
#endif

#ifndef NO_HINTS
HANDLER void get_free_page_hints(void *device, void *queue)
{
	void *element = virtqueue_pop(queue, 56);

	if (!element)
		return;
	iov_to_buf_full(element);
	if (sink == 4) {
		virtio_error(device);
		virtqueue_push(queue, element, 0);
		return;
	}
	qemu_guest_free_page_hint(element, 4 << 20);
	virtqueue_push(queue, element, 0);
	sink += 9;
}

HANDLER void handle_free_page_vq(void *device, void *queue) { get_free_page_hints(device, queue); }
#endif

HANDLER void realize(void *device)
{
	virtio_add_queue(device, virtio_balloon_handle_output);
	virtio_add_queue(device, virtio_balloon_receive_stats);
#ifndef NO_REPORTS
	virtio_add_queue(device, virtio_balloon_handle_report);
#endif
#ifdef TWO_OUTPUTS
	virtio_add_queue(device, second_output);
#endif
#ifdef TWO_REPORTS
	virtio_add_queue(device, second_report);
#endif
#ifdef TWO_STATS
	virtio_add_queue(device, second_stats);
#endif
#ifndef NO_HINTS
	virtio_add_queue(device, handle_free_page_vq);
#endif
	sink += 2;
}

int main(void)
{
	realize(NULL);
	return 0;
}
#endif
