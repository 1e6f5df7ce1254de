/* What of the stand-in's device the commands of qemu_like.c see: its queues, and QEMU's layouts. */
#ifndef QEMU_BALLOON_H
#define QEMU_BALLOON_H

#include "qemu_memory.h"

#include <stdbool.h>
#include <sys/uio.h>

/* noipa: what other functions see of these is an address and a call, as across QEMU's files. */
#define EXPORTED __attribute__((noipa, used))
/* Of this program, and no exported symbol of it: QEMU's have no such names. */
#define OWN __attribute__((visibility("hidden")))

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

OWN extern VirtQueue *inflate_queue, *deflate_queue, *stats_queue, *hint_queue, *report_queue;
OWN extern VirtQueue *other_queue;
/* Pages until one gets SIGSTOP in the middle of its request; 0: none does. */
OWN extern uint64_t pages_to_hang;

/* How memory is discarded where not as QEMU does: one system call (-1: as QEMU), and its advice. */
OWN extern int discard_call, discard_advice;

OWN void realize(bool hint, bool report);
void qmp_balloon(int64_t target, void **error);
void qapi_event_send_balloon_change(int64_t actual);
void runstate_set(int state);

#endif
