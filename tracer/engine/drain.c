/* Bulk reads of a BPF ring buffer (kernel: kernel/bpf/ringbuf.c, since 5.8) whose records have one
 * size. What stands in the ring decides what is copied, but never where from: every address is
 * taken modulo the ring's size. */
#include "drain.h"

#include <string.h>

#define BUSY (UINT32_C(1) << 31)
#define LENGTH ((UINT32_C(1) << 30) - 1) /* without BUSY and DISCARDED */

/* So much is looked at before it is copied: it is still in the nearest cache then. */
enum { HEADER_BYTES = 8, BLOCK_BYTES = 4096 };

struct ring {
    const uint8_t *data;
    uint64_t size, slot;
    uint32_t record;
};

static uint64_t fewer(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Where something so many bytes from the begin of all records lies. A ring holds whole words, and so
 * no header lies across its end. */
static uint64_t place(const struct ring *ring, uint64_t position)
{
    return position & (ring->size - 1);
}

/* Count the records from a position on that are finished and wanted; `header` is that of the next,
 * where it is neither. */
static uint64_t wanted(const struct ring *ring, uint64_t position, uint64_t most, uint32_t *header)
{
    for (uint64_t i = 0; i < most; i++, position += ring->slot) {
        const uint8_t *at = ring->data + place(ring, position);

        /* The kernel's exchange of this word is what ends the writing of the record behind it. */
        *header = __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
        if (*header != ring->record)
            return i;
    }
    return most;
}

static void copy(const struct ring *ring, uint64_t position, uint64_t bytes, uint8_t *to)
{
    uint64_t at = place(ring, position), before = fewer(bytes, ring->size - at);

    memcpy(to, ring->data + at, before);
    memcpy(to + before, ring->data, bytes - before);
}

/* Copy up to so many slots. `position` is then behind the last that is done with. */
static int64_t take(const struct ring *ring, uint64_t *position, uint64_t slots, uint8_t *to)
{
    uint64_t kept = 0, block = BLOCK_BYTES > ring->slot ? BLOCK_BYTES / ring->slot : 1;
    uint32_t header = 0;

    while (slots > 0) {
        uint64_t most = fewer(slots, block), found = wanted(ring, *position, most, &header);

        copy(ring, *position, found * ring->slot, to + kept * ring->slot);
        kept += found;
        slots -= found;
        *position += found * ring->slot;
        if (found == most)
            continue;
        if (header & BUSY)
            break;
        if ((header & LENGTH) != ring->record)
            return AERO_RING_LENGTH;
        slots--; /* discarded */
        *position += ring->slot;
    }
    return (int64_t)kept;
}

int64_t aero_drain(const struct aero_ring_shape *shape, uint64_t *consumer, const uint8_t *pages,
                   uint8_t *to, uint64_t slots)
{
    struct ring ring = {
        .data = pages + shape->page_bytes,
        .size = shape->size_bytes,
        .slot = HEADER_BYTES + ((uint64_t)shape->record_bytes + 7) / 8 * 8,
        .record = shape->record_bytes,
    };
    uint64_t position = __atomic_load_n(consumer, __ATOMIC_RELAXED); /* nobody else writes it */
    uint64_t waiting = __atomic_load_n((const uint64_t *)pages, __ATOMIC_ACQUIRE) - position;
    int64_t kept;

    if ((int64_t)waiting <= 0)
        return 0;
    if (waiting > ring.size || position % HEADER_BYTES != 0)
        return AERO_RING_POSITION;
    kept = take(&ring, &position, fewer(slots, waiting / ring.slot), to);
    if (kept >= 0)
        __atomic_store_n(consumer, position, __ATOMIC_RELEASE); /* from now on it is overwritten */
    return kept;
}
