/* The device's side of a virtqueue. What is in the ring comes from a guest that nobody trusts: each
 * call does work in proportion to the queue's size, and touches nothing but shared memory and the
 * caller's buffer. A buffer that is refused is still given back, so that the driver goes on. */
#include "ring.h"

#include <string.h>

struct descriptor {
    uint64_t gpa;
    uint32_t length_bytes;
    uint16_t flags;
    uint16_t next;
};

/* Where in shared memory these bytes lie; -1 where not all of them do. Cannot wrap. */
static int64_t inside(const struct aero_ring *ring, uint64_t gpa, uint64_t length_bytes)
{
    uint64_t offset = gpa - ring->gpa;

    if (gpa < ring->gpa || offset > ring->shared_bytes ||
        length_bytes > ring->shared_bytes - offset)
        return -1;
    return (int64_t)offset;
}

static struct descriptor read_descriptor(const struct aero_ring *ring, uint64_t offset)
{
    uint8_t copy[AERO_DESCRIPTOR_BYTES]; /* the driver may go on writing */

    memcpy(copy, ring->shared + offset, sizeof(copy));
    return (struct descriptor){aero_load_le(copy, 8), (uint32_t)aero_load_le(copy + 8, 4),
                               (uint16_t)aero_load_le(copy + 12, 2),
                               (uint16_t)aero_load_le(copy + 14, 2)};
}

/* Where the table begins that a descriptor points to; -1 for one that must not be followed. */
static int64_t table_of(const struct aero_ring *ring, const struct descriptor *descriptor)
{
    uint32_t length = descriptor->length_bytes;

    if (!ring->indirect || descriptor->flags & AERO_NEXT || length == 0 ||
        length % AERO_DESCRIPTOR_BYTES || length / AERO_DESCRIPTOR_BYTES > ring->size)
        return -1;
    return inside(ring, descriptor->gpa, length);
}

/* Append what one descriptor brings: the bytes that it points to; or, where descriptors are
 * themselves the ranges, the descriptor, without what only chained it. */
static int append(const struct aero_ring *ring, const struct descriptor *descriptor, int form,
                  struct aero_buffer *buffer)
{
    uint64_t length = descriptor->length_bytes, room = buffer->capacity_bytes - buffer->length_bytes;
    uint8_t *to = buffer->content + buffer->length_bytes;
    int64_t offset;

    if (length == 0)
        return AERO_EMPTY;
    if (form == AERO_SCATTERLIST) {
        if (length - 1 > UINT64_MAX - descriptor->gpa)
            return AERO_OUTSIDE;
        if (room < AERO_DESCRIPTOR_BYTES)
            return AERO_TOO_LONG;
        aero_store_le(to, descriptor->gpa, 8);
        aero_store_le(to + 8, length, 4);
        aero_store_le(to + 12, descriptor->flags & AERO_WRITE, 4);
        buffer->length_bytes += AERO_DESCRIPTOR_BYTES;
        return AERO_SOUND;
    }
    if (descriptor->flags & AERO_WRITE)
        return AERO_DIRECTION;
    if ((offset = inside(ring, descriptor->gpa, length)) < 0)
        return AERO_OUTSIDE;
    if (room < length)
        return AERO_TOO_LONG;
    memcpy(to, ring->shared + offset, length);
    buffer->length_bytes += length;
    return AERO_SOUND;
}

/* Walk one chain, which begins in the queue's own table or is one indirect table as a whole. */
static int gather(struct aero_device *device, const struct aero_ring *ring, int form,
                  struct aero_buffer *buffer)
{
    int64_t table = (int64_t)ring->desc_offset;
    uint32_t entries = ring->size, at = buffer->head;
    struct descriptor descriptor;
    uint16_t writable = 0;
    int reason;

    descriptor = read_descriptor(ring, table + at * AERO_DESCRIPTOR_BYTES);
    device->descriptors++;
    if (descriptor.flags & AERO_INDIRECT) {
        if ((table = table_of(ring, &descriptor)) < 0)
            return AERO_TABLE;
        entries = descriptor.length_bytes / AERO_DESCRIPTOR_BYTES;
        descriptor = read_descriptor(ring, table);
        device->descriptors++;
    }
    for (uint32_t seen = 1;; seen++) {
        if (descriptor.flags & AERO_INDIRECT)
            return AERO_TABLE;
        if (writable && !(descriptor.flags & AERO_WRITE))
            return AERO_ORDER;
        writable = descriptor.flags & AERO_WRITE;
        if ((reason = append(ring, &descriptor, form, buffer)) != AERO_SOUND)
            return reason;
        if (!(descriptor.flags & AERO_NEXT))
            return AERO_SOUND;
        if (descriptor.next >= entries || seen == entries)
            return AERO_LOOP;
        descriptor = read_descriptor(ring, table + descriptor.next * AERO_DESCRIPTOR_BYTES);
        device->descriptors++;
    }
}

/* Take the next buffer (virtqueue_pop) and gather what it says, as `form` (enum aero_wire) has it.
 *
 * AERO_TAKEN: give buffer->head back, also where buffer->refused says why it is empty. AERO_SKIPPED:
 * the head is no descriptor, go on. AERO_NONE: nothing is offered, or nothing that can be believed. */
int aero_device_pop(struct aero_device *device, const struct aero_ring *ring, int form,
                    struct aero_buffer *buffer)
{
    uint16_t offered = aero_load16(ring, aero_avail_idx_at(ring)) - device->avail_idx;

    if (device->broken || offered == 0)
        return AERO_NONE;
    if (offered > ring->size) {
        device->broken = 1;
        device->refused[AERO_AHEAD]++;
        return AERO_NONE;
    }
    buffer->head = aero_load16(ring, aero_avail_entry_at(ring, device->avail_idx++));
    buffer->length_bytes = 0;
    if (ring->event_idx) {
        aero_store16(ring, aero_avail_event_at(ring), device->avail_idx);
        aero_full_barrier();
    }
    if (buffer->head >= ring->size) {
        device->refused[AERO_HEAD]++;
        return AERO_SKIPPED;
    }
    device->buffers++;
    buffer->refused = gather(device, ring, form, buffer);
    if (buffer->refused != AERO_SOUND) {
        device->refused[buffer->refused]++;
        buffer->length_bytes = 0;
    }
    device->payload_bytes += form == AERO_SCATTERLIST ? 0 : buffer->length_bytes;
    return AERO_TAKEN;
}

/* Give a buffer back (virtqueue_push). */
void aero_device_push(struct aero_device *device, const struct aero_ring *ring, uint16_t head,
                      uint32_t written_bytes)
{
    uint8_t *entry = ring->shared + aero_used_entry_at(ring, device->used_idx);

    aero_store_le(entry, head, 4);
    aero_store_le(entry + 4, written_bytes, 4);
    aero_store16(ring, aero_used_idx_at(ring), ++device->used_idx);
}

/* Whether the driver wants an interrupt for what was given back (virtio_should_notify of QEMU). */
int aero_device_notify(struct aero_device *device, const struct aero_ring *ring)
{
    uint16_t before = device->signalled_idx;
    int first = !device->signalled;

    device->signalled = 1;
    device->signalled_idx = device->used_idx;
    aero_full_barrier();
    if (ring->event_idx)
        return first || aero_due(aero_load16(ring, aero_used_event_at(ring)), device->used_idx,
                                 before);
    return !(aero_load16(ring, ring->avail_offset) & AERO_NO_INTERRUPT);
}
