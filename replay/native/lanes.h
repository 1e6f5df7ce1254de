/* The queues of a balloon between a driver and a device, and what a driver may send through them. */
#ifndef AEROSTAT_LANES_H
#define AEROSTAT_LANES_H

#include "exchange.h"
#include "ring.h"

enum { AERO_LANES = 3, AERO_RANGE_HEADER_BYTES = 8 };

/* One queue, with both sides' accounts, which share no cache line: they would be two machines'. */
struct lane {
    struct aero_ring ring;
    int kick, call; /* eventfds: to the device, to the driver */
    uint8_t form;
    struct aero_driver driver;
    int in_flight;
    int64_t kicks;
    _Alignas(64) struct aero_device device;
    int64_t interrupts;
};

struct lanes {
    struct lane lane[AERO_LANES];
    int stop; /* eventfd: the device's thread shall end */
    uint8_t *shared;
    uint64_t shared_bytes;
};

static inline struct lane *aero_lane_of(struct lanes *lanes, uint8_t queue)
{
    return &lanes->lane[queue == AERO_REPORTING ? 2 : queue];
}

int aero_lanes_open(struct lanes *lanes, const struct aero_sent *sent,
                    const struct aero_agreed *agreed);
void aero_lanes_close(struct lanes *lanes);

#endif
