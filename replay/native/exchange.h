/* Stage b executed: requests sent from a driver to a device through virtqueues in shared memory. */
#ifndef AEROSTAT_EXCHANGE_H
#define AEROSTAT_EXCHANGE_H

#include "core.h"

/* cdef begin */
/* Wire requests in the order in which they are sent; request i is wire[start[i], start[i + 1]). */
struct aero_sent {
    const uint8_t *wire;
    const uint64_t *start;
    const uint8_t *form;  /* enum aero_wire; one for all requests of a queue */
    const uint8_t *queue; /* enum aero_queue */
    const uint8_t *wait;  /* 0: the driver adds the next one before it kicks, while the ring has room */
    int64_t count;
};

/* As tracer.trace.schema.Queue numbers them; the other two carry no pages. */
enum aero_queue { AERO_INFLATE = 0, AERO_DEFLATE = 1, AERO_REPORTING = 4 };

/* What driver and device agreed on, and where they run: cpus is NULL, or the CPU of each. */
struct aero_agreed {
    int event_idx;
    int indirect;
    const int *cpus;
};

/* What the device does with each request before it gives it back; requests it carries out
 * [op_end[i - 1], op_end[i]) of the operations for. Each operation runs in the device's thread. */
struct aero_service {
    const struct aero_map *map;
    const struct aero_memory *memory;
    const struct aero_ops *ops;
    const struct aero_rules *rules;
    const int64_t *op_end;
    uint8_t *failed; /* as for aero_execute */
};

/* `wall_ns` is the driver's, from the first request added to the last one taken back. Of a device
 * that serves, translate_ns and discard_ns lie within it; the rest is stage b. */
struct aero_exchanged {
    int64_t wall_ns;
    int64_t driver_cpu_ns;
    int64_t device_cpu_ns;
    int64_t kicks;      /* notifications of the device */
    int64_t interrupts; /* of the driver */
    int64_t buffers;
    int64_t descriptors;
    uint64_t payload_bytes;
    uint64_t written_bytes; /* by the device, as the used rings say */
    int64_t refused;
    int64_t translate_ns;
    int64_t discard_ns;
    int64_t minor_faults; /* of the device's thread, as the next */
    int64_t preemptions;
    struct aero_translation translation;
    struct aero_outcome outcome;
};

int64_t aero_sendable(const struct aero_sent *sent);
int aero_exchange(const struct aero_sent *sent, const struct aero_agreed *agreed,
                  const struct aero_service *service, uint8_t *received, uint64_t *received_start,
                  struct aero_exchanged *out);
/* cdef end */

#endif
