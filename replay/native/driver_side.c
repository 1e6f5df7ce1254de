/* The driver's thread: it sends requests and sleeps until they have come back. */
#define _GNU_SOURCE
#include "sides.h"

#include <string.h>
#include <time.h>

/* Kick, and sleep until all that is in flight has come back: as tell_host() does for one request,
 * and kick_and_wait() of the later range series (F_SG, v15, 2017) for a ring full of them. */
static int kick_and_wait(struct lane *lane)
{
    if (aero_driver_kick(&lane->driver, &lane->ring)) {
        lane->kicks++;
        aero_signal(lane->kick);
    }
    while (lane->in_flight) {
        int taken = aero_driver_take(&lane->driver, &lane->ring);

        if (taken < 0)
            return EPROTO;
        if (taken == 0)
            aero_clear_signal(lane->call);
        lane->in_flight -= taken;
    }
    return 0;
}

/* The elements of one buffer: PFNs in one; the seed's header and words in one each; ranges as they
 * are. Content is written where a driver's own buffer lies. */
static int elements_of(const struct exchange *exchange, const struct lane *lane, int64_t i,
                       struct aero_element *element)
{
    const uint8_t *at = exchange->sent->wire + exchange->sent->start[i];
    uint64_t bytes = exchange->sent->start[i + 1] - exchange->sent->start[i];
    uint64_t gpa = lane->ring.gpa + lane->ring.payload_offset;

    if (lane->form == AERO_SCATTERLIST) {
        for (uint64_t k = 0; k < bytes / AERO_DESCRIPTOR_BYTES; k++, at += AERO_DESCRIPTOR_BYTES)
            element[k] = (struct aero_element){aero_load_le(at, 8),
                                               (uint32_t)aero_load_le(at + 8, 4), 1};
        return (int)(bytes / AERO_DESCRIPTOR_BYTES);
    }
    memcpy(lane->ring.shared + lane->ring.payload_offset, at, bytes);
    if (lane->form == AERO_PFNS) {
        element[0] = (struct aero_element){gpa, (uint32_t)bytes, 0};
        return 1;
    }
    element[0] = (struct aero_element){gpa, AERO_RANGE_HEADER_BYTES, 0};
    element[1] = (struct aero_element){gpa + AERO_RANGE_HEADER_BYTES,
                                       (uint32_t)(bytes - AERO_RANGE_HEADER_BYTES), 0};
    return 2;
}

static int send_request(struct exchange *exchange, int64_t i)
{
    const struct aero_sent *sent = exchange->sent;
    struct lane *lane = aero_lane_of(&exchange->lanes, sent->queue[i]);
    struct aero_element element[AERO_TABLE_MAX];
    int count = elements_of(exchange, lane, i, element);
    int error = aero_driver_add(&lane->driver, &lane->ring, element, count);

    if (error == ENOSPC) {
        error = kick_and_wait(lane);
        if (!error)
            error = aero_driver_add(&lane->driver, &lane->ring, element, count);
    }
    if (error)
        return error;
    lane->in_flight++;
    /* The balloon's lock lets one queue be used at a time. */
    if (sent->wait[i] || i + 1 == sent->count || sent->queue[i + 1] != sent->queue[i])
        return kick_and_wait(lane);
    return 0;
}

int aero_driver_side(struct exchange *exchange)
{
    int64_t cpu, wall;
    int error = 0;

    pthread_barrier_wait(&exchange->ready);
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    wall = aero_now_ns(CLOCK_MONOTONIC);
    for (int64_t i = 0; i < exchange->sent->count && !error; i++)
        error = send_request(exchange, i);
    exchange->out->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    exchange->out->driver_cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return error;
}
