/* What a bulk read of a BPF ring buffer asks of C: many records in one pass. */
#ifndef AEROSTAT_DRAIN_H
#define AEROSTAT_DRAIN_H

#include <stdint.h>

/* cdef begin */
struct aero_ring_shape {
    uint64_t size_bytes;   /* of the data, a power of two of pages */
    uint32_t record_bytes; /* of each record, without its header */
    uint32_t page_bytes;   /* from the producer's position to the data */
};

enum aero_drain_refusal { AERO_RING_LENGTH = -1, AERO_RING_POSITION = -2 };

/* Copies finished records out of a ring, headers and all, and frees their space. It ends at a record
 * that is still being written, and leaves out those that were discarded.
 *
 * consumer: the consumer's position. pages: the producer's, and a page further on the data, once.
 * to: room for so many slots; no more are read.
 *
 * Returns how many were copied, or one of aero_drain_refusal: then all are still in the ring. */
int64_t aero_drain(const struct aero_ring_shape *shape, uint64_t *consumer, const uint8_t *pages,
                   uint8_t *to, uint64_t slots);
/* cdef end */

#endif
