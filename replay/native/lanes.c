/* The queues of a balloon: what a driver may send through them, and the memory that they lie in. */
#define _GNU_SOURCE
#include "lanes.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* Queues and their sizes as virtio_balloon_device_realize of QEMU 5.1 and later makes them; the most
 * that a request may hold as the drivers' own buffers have it (replay/wire.py names the sources). */
enum {
    BALLOON_SIZE = 128,
    REPORTING_SIZE = 32,
    MAX_PFN_BYTES = 256 * 4,
    MAX_WORD_BYTES = 4096 * 8
};
static const uint64_t SHARED_GPA = UINT64_C(1) << 62; /* no memory of a trace lies there */

/* A request that its protocol's driver would send. */
static int is_sendable(const struct aero_sent *sent, int64_t i)
{
    uint64_t bytes = sent->start[i + 1] - sent->start[i];

    if (sent->queue[i] > AERO_DEFLATE && sent->queue[i] != AERO_REPORTING)
        return 0;
    if (sent->queue[i] == AERO_REPORTING && sent->form[i] != AERO_SCATTERLIST)
        return 0;
    /* A driver has one buffer for what it sends, and must not write to it before it comes back. */
    if (sent->form[i] != AERO_SCATTERLIST && !sent->wait[i])
        return 0;
    switch (sent->form[i]) {
    case AERO_PFNS:
        return bytes >= 4 && bytes % 4 == 0 && bytes <= MAX_PFN_BYTES;
    case AERO_RANGE_WORDS:
        return bytes > AERO_RANGE_HEADER_BYTES && bytes % 8 == 0 &&
               bytes <= AERO_RANGE_HEADER_BYTES + MAX_WORD_BYTES;
    case AERO_SCATTERLIST:
        return bytes && bytes % AERO_DESCRIPTOR_BYTES == 0 &&
               bytes <= AERO_TABLE_MAX * AERO_DESCRIPTOR_BYTES;
    default:
        return 0;
    }
}

/* Index of the first request that no driver sends, or whose form is not that of its queue; -1 when
 * all are as they must be. */
int64_t aero_sendable(const struct aero_sent *sent)
{
    int form[AERO_REPORTING + 1] = {-1, -1, -1, -1, -1};

    for (int64_t i = 0; i < sent->count; i++) {
        if (!is_sendable(sent, i))
            return i;
        if (form[sent->queue[i]] >= 0 && form[sent->queue[i]] != sent->form[i])
            return i;
        form[sent->queue[i]] = sent->form[i];
    }
    return -1;
}

int aero_lanes_open(struct lanes *lanes, const struct aero_sent *sent,
                    const struct aero_agreed *agreed)
{
    uint64_t end = 0;

    *lanes = (struct lanes){.stop = -1, .shared = MAP_FAILED};
    for (int i = 0; i < AERO_LANES; i++) {
        struct aero_ring *ring = &lanes->lane[i].ring;

        lanes->lane[i].kick = lanes->lane[i].call = -1;
        ring->size = i == 2 ? REPORTING_SIZE : BALLOON_SIZE;
        ring->payload_bytes = i == 2 ? 0 : AERO_RANGE_HEADER_BYTES + MAX_WORD_BYTES;
        ring->gpa = SHARED_GPA;
        ring->event_idx = agreed->event_idx != 0;
        ring->indirect = agreed->indirect != 0;
        end = aero_ring_place(ring, end);
    }
    lanes->shared_bytes = end;
    lanes->shared = mmap(NULL, end, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (lanes->shared == MAP_FAILED)
        return errno;
    for (int i = 0; i < AERO_LANES; i++) {
        struct lane *lane = &lanes->lane[i];

        lane->ring.shared = lanes->shared;
        lane->ring.shared_bytes = end;
        aero_driver_reset(&lane->driver, &lane->ring);
        lane->kick = eventfd(0, EFD_CLOEXEC);
        lane->call = eventfd(0, EFD_CLOEXEC);
        if (lane->kick < 0 || lane->call < 0)
            return errno;
    }
    for (int64_t i = 0; i < sent->count; i++)
        aero_lane_of(lanes, sent->queue[i])->form = sent->form[i];
    lanes->stop = eventfd(0, EFD_CLOEXEC);
    return lanes->stop < 0 ? errno : 0;
}

void aero_lanes_close(struct lanes *lanes)
{
    for (int i = 0; i < AERO_LANES; i++) {
        if (lanes->lane[i].kick >= 0)
            close(lanes->lane[i].kick);
        if (lanes->lane[i].call >= 0)
            close(lanes->lane[i].call);
    }
    if (lanes->stop >= 0)
        close(lanes->stop);
    if (lanes->shared != MAP_FAILED)
        munmap(lanes->shared, lanes->shared_bytes);
}
