/* Stage b: a driver's thread and a device's thread, the queues of a balloon between them, and an
 * eventfd for each direction of each queue, as KVM's ioeventfd and irqfd are. */
#define _GNU_SOURCE
#include "sides.h"

#include <sched.h>
#include <stdlib.h>

/* Make the device's thread, be the driver's, and end both. */
static int run_both(struct exchange *exchange)
{
    const int *cpus = exchange->cpus;
    cpu_set_t before, set;
    pthread_attr_t attr;
    pthread_t device;
    int error;

    pthread_attr_init(&attr);
    if (cpus) {
        CPU_ZERO(&set);
        CPU_SET(cpus[1], &set);
        pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
    }
    error = pthread_create(&device, &attr, aero_device_side, exchange);
    pthread_attr_destroy(&attr);
    if (error)
        return error;
    sched_getaffinity(0, sizeof(before), &before);
    if (cpus) {
        CPU_ZERO(&set);
        CPU_SET(cpus[0], &set);
        sched_setaffinity(0, sizeof(set), &set);
    }
    error = aero_driver_side(exchange);
    aero_signal(exchange->lanes.stop);
    pthread_join(device, NULL);
    if (cpus)
        sched_setaffinity(0, sizeof(before), &before);
    return error;
}

static void add_up(struct exchange *exchange)
{
    struct aero_exchanged *out = exchange->out;

    for (int i = 0; i < AERO_LANES; i++) {
        const struct lane *lane = &exchange->lanes.lane[i];
        const struct aero_device *device = &lane->device;

        out->kicks += lane->kicks;
        out->interrupts += lane->interrupts;
        out->buffers += device->buffers;
        out->descriptors += device->descriptors;
        out->payload_bytes += device->payload_bytes;
        out->written_bytes += lane->driver.written_bytes;
        for (int reason = AERO_SOUND + 1; reason < AERO_REFUSALS; reason++)
            out->refused += device->refused[reason];
    }
    if (exchange->service) {
        out->outcome.wall_ns = out->discard_ns;
        aero_close_outcome(&out->outcome, &exchange->tally);
    }
}

/* Operations that may be carried out, in shares that end with the last of them. */
static int check_service(const struct aero_sent *sent, const struct aero_service *service,
                         struct aero_outcome *outcome)
{
    int64_t before = 0;

    outcome->first_failed = aero_check(service->memory, service->ops, service->rules, 1);
    if (outcome->first_failed >= 0)
        return EINVAL;
    for (int64_t i = 0; i < sent->count; before = service->op_end[i++])
        if (service->op_end[i] < before)
            return EINVAL;
    return before == service->ops->count ? 0 : EINVAL;
}

static int prepare_run(struct exchange *exchange)
{
    const struct aero_service *service = exchange->service;

    exchange->run = (struct run){service->memory, service->ops, service->rules,
                                 NULL, service->failed, -1, NULL};
    aero_count_calls(service->ops, service->rules, &exchange->out->outcome);
    if (service->ops->joined && (exchange->run.pidfd = aero_open_self()) < 0)
        return errno;
    return 0;
}

/* Send every request from the calling thread, the driver's, to a thread of the device.
 *
 * `received` (as many bytes as were sent) gets what the device gathered from the ring, request i at
 * [received_start[i], received_start[i + 1]); both must be faulted in before, or the faults are
 * timed. 0; EINVAL for what must not be sent or carried out (aero_sendable and outcome.first_failed
 * say what); EPROTO where the device gave back what it had not got; or why memory, a thread or an
 * eventfd cannot be had. */
int aero_exchange(const struct aero_sent *sent, const struct aero_agreed *agreed,
                  const struct aero_service *service, uint8_t *received, uint64_t *received_start,
                  struct aero_exchanged *out)
{
    struct exchange *exchange;
    int error;

    *out = (struct aero_exchanged){.outcome.first_failed = -1};
    if (aero_sendable(sent) >= 0)
        return EINVAL;
    if (service && (error = check_service(sent, service, &out->outcome)))
        return error;
    if (!(exchange = aligned_alloc(64, sizeof(*exchange))))
        return ENOMEM;
    *exchange = (struct exchange){.sent = sent, .cpus = agreed->cpus, .service = service,
                                  .out = out, .received = received,
                                  .received_start = received_start, .run.pidfd = -1};
    received_start[0] = 0;
    pthread_barrier_init(&exchange->ready, NULL, 2);
    error = aero_lanes_open(&exchange->lanes, sent, agreed);
    if (!error && service)
        error = prepare_run(exchange);
    if (!error)
        error = run_both(exchange);
    if (!error)
        add_up(exchange);
    pthread_barrier_destroy(&exchange->ready);
    aero_lanes_close(&exchange->lanes);
    if (exchange->run.pidfd >= 0)
        close(exchange->run.pidfd);
    free(exchange);
    return error;
}
