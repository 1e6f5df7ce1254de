/* The driver's side of a virtqueue, as drivers/virtio/virtio_ring.c drives a split one. */
#include "ring.h"

#include <errno.h>
#include <string.h>

static uint64_t align_up(uint64_t offset, uint64_t unit)
{
    return (offset + unit - 1) / unit * unit;
}

/* Lay out a ring whose size, payload_bytes and shared_bytes are set, from `offset` on; returns the
 * first byte behind it. The alignments are those of virtio 1.2, 2.7: 16, 2 and 4. */
uint64_t aero_ring_place(struct aero_ring *ring, uint64_t offset)
{
    uint64_t size = ring->size;

    ring->desc_offset = align_up(offset, AERO_DESCRIPTOR_BYTES);
    ring->avail_offset = ring->desc_offset + AERO_DESCRIPTOR_BYTES * size;
    ring->used_offset = align_up(ring->avail_offset + 6 + 2 * size, 4);
    ring->table_offset = align_up(ring->used_offset + 6 + 8 * size, AERO_DESCRIPTOR_BYTES);
    ring->payload_offset = ring->table_offset + AERO_TABLE_MAX * AERO_DESCRIPTOR_BYTES * size;
    return ring->payload_offset + ring->payload_bytes;
}

void aero_driver_reset(struct aero_driver *driver, const struct aero_ring *ring)
{
    memset(driver, 0, sizeof(*driver));
    driver->free_count = ring->size;
    for (int i = 0; i < ring->size; i++)
        driver->next[i] = (uint16_t)(i + 1);
    memset(ring->shared + ring->desc_offset, 0, ring->table_offset - ring->desc_offset);
}

static void write_descriptor(uint8_t *at, uint64_t gpa, uint32_t length_bytes, uint16_t flags,
                             uint16_t next)
{
    aero_store_le(at, gpa, 8);
    aero_store_le(at + 8, length_bytes, 4);
    aero_store_le(at + 12, flags, 2);
    aero_store_le(at + 14, next, 2);
}

static void write_element(uint8_t *at, const struct aero_element *element, int last, uint16_t next)
{
    uint16_t flags = (element->writable ? AERO_WRITE : 0) | (last ? 0 : AERO_NEXT);

    write_descriptor(at, element->gpa, element->length_bytes, flags, last ? 0 : next);
}

/* Descriptors come from the driver's own list of free ones; a table of `count` takes one. */
static uint16_t write_chain(struct aero_driver *driver, const struct aero_ring *ring,
                            const struct aero_element *element, int count)
{
    uint8_t *desc = ring->shared + ring->desc_offset;
    uint16_t at = driver->free_head;

    if (ring->indirect && count > 1) {
        uint64_t offset =
            ring->table_offset + (uint64_t)at * AERO_TABLE_MAX * AERO_DESCRIPTOR_BYTES;
        uint8_t *table = ring->shared + offset;

        for (int i = 0; i < count; i++)
            write_element(table + i * AERO_DESCRIPTOR_BYTES, element + i, i == count - 1,
                          (uint16_t)(i + 1));
        write_descriptor(desc + at * AERO_DESCRIPTOR_BYTES, ring->gpa + offset,
                         (uint32_t)count * AERO_DESCRIPTOR_BYTES, AERO_INDIRECT, 0);
        return driver->next[at];
    }
    for (int i = 0; i < count; i++, at = driver->next[at])
        write_element(desc + at * AERO_DESCRIPTOR_BYTES, element + i, i == count - 1,
                      driver->next[at]);
    return at;
}

/* Make a buffer of `count` elements available (virtqueue_add_split). EINVAL for what no driver adds,
 * ENOSPC where the ring has no room for it now. */
int aero_driver_add(struct aero_driver *driver, const struct aero_ring *ring,
                    const struct aero_element *element, int count)
{
    int taken = ring->indirect && count > 1 ? 1 : count;
    uint16_t head = driver->free_head;

    if (count < 1 || count > ring->size || (taken == 1 && count > AERO_TABLE_MAX))
        return EINVAL;
    if (taken > driver->free_count)
        return ENOSPC;
    driver->free_head = write_chain(driver, ring, element, count);
    driver->free_count -= (uint16_t)taken;
    driver->length[head] = (uint16_t)taken;
    aero_store16(ring, aero_avail_entry_at(ring, driver->avail_idx), head);
    aero_store16(ring, aero_avail_idx_at(ring), ++driver->avail_idx);
    return 0;
}

/* Whether the device wants to be told of what was added (virtqueue_kick_prepare). */
int aero_driver_kick(struct aero_driver *driver, const struct aero_ring *ring)
{
    uint16_t before = driver->kicked_idx;

    driver->kicked_idx = driver->avail_idx;
    aero_full_barrier();
    if (ring->event_idx)
        return aero_due(aero_load16(ring, aero_avail_event_at(ring)), driver->avail_idx, before);
    return !(aero_load16(ring, ring->used_offset) & AERO_NO_NOTIFY);
}

/* Take back one buffer that the device has used (virtqueue_get_buf): 1; 0 where there is none; -1
 * where the device gave back what it was not given. */
int aero_driver_take(struct aero_driver *driver, const struct aero_ring *ring)
{
    uint16_t ready = aero_load16(ring, aero_used_idx_at(ring)) - driver->used_idx, last;
    const uint8_t *entry = ring->shared + aero_used_entry_at(ring, driver->used_idx);
    uint32_t head, written_bytes;

    if (ready == 0)
        return 0;
    head = (uint32_t)aero_load_le(entry, 4);
    written_bytes = (uint32_t)aero_load_le(entry + 4, 4);
    if (ready > ring->size || head >= ring->size || driver->length[head] == 0)
        return -1;
    last = (uint16_t)head;
    for (int i = 1; i < driver->length[head]; i++)
        last = driver->next[last];
    driver->next[last] = driver->free_head;
    driver->free_head = (uint16_t)head;
    driver->free_count += driver->length[head];
    driver->length[head] = 0;
    driver->written_bytes += written_bytes;
    driver->used_idx++;
    if (ring->event_idx) {
        aero_store16(ring, aero_used_event_at(ring), driver->used_idx);
        aero_full_barrier();
    }
    return 1;
}
