/* A split virtqueue as virtio 1.x lays it out (2.7), in memory that a driver and a device share, and
 * what each side does with it. Fields in shared memory are little-endian on every machine. Whatever
 * the other side may have written is copied once, and checked before it is used. */
#ifndef AEROSTAT_RING_H
#define AEROSTAT_RING_H

#include "core.h"

/* cdef begin */
enum aero_descriptor_flag { AERO_NEXT = 1, AERO_WRITE = 2, AERO_INDIRECT = 4 };

/* Bytes of a descriptor, most descriptors of a queue, and of one indirect table of the driver. */
enum aero_ring_size { AERO_DESCRIPTOR_BYTES = 16, AERO_RING_MAX = 1024, AERO_TABLE_MAX = 32 };

/* Where a queue lies, and what both sides agreed on. Offsets are bytes from `shared`. */
struct aero_ring {
    uint8_t *shared;
    uint64_t shared_bytes;
    uint64_t gpa; /* guest-physical address of the first byte of `shared` */
    uint64_t desc_offset;
    uint64_t avail_offset;
    uint64_t used_offset;
    uint64_t table_offset;   /* one indirect table of AERO_TABLE_MAX for each descriptor */
    uint64_t payload_offset; /* the driver's buffer */
    uint64_t payload_bytes;
    uint16_t size;
    uint8_t event_idx; /* VIRTIO_RING_F_EVENT_IDX */
    uint8_t indirect;  /* VIRTIO_RING_F_INDIRECT_DESC */
};

/* The driver's own account. Free descriptors are linked here, out of the device's reach. */
struct aero_driver {
    uint16_t free_head;
    uint16_t free_count;
    uint16_t avail_idx;
    uint16_t kicked_idx;
    uint16_t used_idx;
    uint64_t written_bytes; /* that the device said it wrote into buffers, all of them together */
    uint16_t next[1024];
    uint16_t length[1024]; /* descriptors of the buffer that begins here, 0 where none does */
};

struct aero_element {
    uint64_t gpa;
    uint32_t length_bytes;
    uint8_t writable; /* by the device */
};

/* Why a device refuses a buffer, or a whole ring. */
enum aero_refusal {
    AERO_SOUND,
    AERO_AHEAD,     /* more buffers offered than the ring has places: the ring is broken */
    AERO_HEAD,      /* a head that is no descriptor: nothing can be given back */
    AERO_LOOP,      /* a chain longer than the queue, or a next descriptor that does not exist */
    AERO_TABLE,     /* an indirect table that is misplaced, misshapen or nested */
    AERO_EMPTY,     /* a descriptor of no bytes */
    AERO_OUTSIDE,   /* bytes that are not in shared memory, or an end beyond 64 bits */
    AERO_ORDER,     /* a readable descriptor behind a writable one */
    AERO_DIRECTION, /* a writable descriptor where the device only reads */
    AERO_TOO_LONG,  /* more bytes than the device takes in one request */
    AERO_REFUSALS
};

/* The device's own account. Counts are of what it saw. */
struct aero_device {
    uint16_t avail_idx;
    uint16_t used_idx;
    uint16_t signalled_idx;
    uint8_t signalled; /* signalled_idx holds something */
    uint8_t broken;
    int64_t buffers;
    int64_t descriptors; /* indirect ones and those that hold a table included */
    uint64_t payload_bytes;
    int64_t refused[10]; /* by enum aero_refusal */
};

/* One buffer as the device took it. `content` and `capacity_bytes` are the caller's. */
struct aero_buffer {
    uint8_t *content;
    uint64_t capacity_bytes;
    uint64_t length_bytes;
    uint16_t head;
    int refused; /* enum aero_refusal */
};

enum aero_popped { AERO_NONE, AERO_TAKEN, AERO_SKIPPED };

uint64_t aero_ring_place(struct aero_ring *ring, uint64_t offset);
void aero_driver_reset(struct aero_driver *driver, const struct aero_ring *ring);
int aero_driver_add(struct aero_driver *driver, const struct aero_ring *ring,
                    const struct aero_element *element, int count);
int aero_driver_kick(struct aero_driver *driver, const struct aero_ring *ring);
int aero_driver_take(struct aero_driver *driver, const struct aero_ring *ring);
int aero_device_pop(struct aero_device *device, const struct aero_ring *ring, int form,
                    struct aero_buffer *buffer);
void aero_device_push(struct aero_device *device, const struct aero_ring *ring, uint16_t head,
                      uint32_t written_bytes);
int aero_device_notify(struct aero_device *device, const struct aero_ring *ring);
/* cdef end */

enum { AERO_NO_INTERRUPT = 1, AERO_NO_NOTIFY = 1 }; /* flags of the avail and of the used ring */

static inline uint64_t aero_load_le(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static inline void aero_store_le(uint8_t *at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static inline uint16_t aero_le16(uint16_t value)
{
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap16(value) : value;
}

/* Indices order all other accesses: what lies before a store is seen by who loads what it stored. */
static inline uint16_t aero_load16(const struct aero_ring *ring, uint64_t offset)
{
    return aero_le16(__atomic_load_n((uint16_t *)(ring->shared + offset), __ATOMIC_ACQUIRE));
}

static inline void aero_store16(const struct aero_ring *ring, uint64_t offset, uint16_t value)
{
    __atomic_store_n((uint16_t *)(ring->shared + offset), aero_le16(value), __ATOMIC_RELEASE);
}

/* Each side stores its own index and then loads the other's; without this both could sleep. */
static inline void aero_full_barrier(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* The other side asked to be told when the index passes `event` (virtio 1.2, 2.7.10). */
static inline int aero_due(uint16_t event, uint16_t now, uint16_t before)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

/* Fields of the avail and the used ring: flags, idx, then the entries, then the event index. */
static inline uint64_t aero_avail_idx_at(const struct aero_ring *ring)
{
    return ring->avail_offset + 2;
}

static inline uint64_t aero_avail_entry_at(const struct aero_ring *ring, uint16_t idx)
{
    return ring->avail_offset + 4 + 2 * (uint64_t)(idx % ring->size);
}

static inline uint64_t aero_used_event_at(const struct aero_ring *ring)
{
    return ring->avail_offset + 4 + 2 * (uint64_t)ring->size;
}

static inline uint64_t aero_used_idx_at(const struct aero_ring *ring)
{
    return ring->used_offset + 2;
}

static inline uint64_t aero_used_entry_at(const struct aero_ring *ring, uint16_t idx)
{
    return ring->used_offset + 4 + 8 * (uint64_t)(idx % ring->size);
}

static inline uint64_t aero_avail_event_at(const struct aero_ring *ring)
{
    return ring->used_offset + 4 + 8 * (uint64_t)ring->size;
}

#endif
