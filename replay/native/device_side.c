/* The device's thread: it sleeps until it is kicked, takes what there is, and gives it back. */
#define _GNU_SOURCE
#include "sides.h"

#include "stages.h"

#include <poll.h>
#include <time.h>

static void serve_request(struct exchange *exchange, const struct lane *lane,
                          const struct aero_buffer *buffer)
{
    const struct aero_service *service = exchange->service;
    struct aero_exchanged *out = exchange->out;
    int64_t i = exchange->served, begin = aero_now_ns(CLOCK_MONOTONIC), decoded;

    aero_translate_request(buffer->content, buffer->content + buffer->length_bytes, lane->form,
                           service->map, &out->translation);
    decoded = aero_now_ns(CLOCK_MONOTONIC);
    aero_run_span(&exchange->run, i ? service->op_end[i - 1] : 0, service->op_end[i], 0,
                  &exchange->tally);
    out->discard_ns += aero_now_ns(CLOCK_MONOTONIC) - decoded;
    out->translate_ns += decoded - begin;
}

/* Take all that the queue offers, and give each back, as virtio_balloon_handle_output of QEMU does. */
static void serve_queue(struct exchange *exchange, struct lane *lane)
{
    uint64_t *start = exchange->received_start, capacity = exchange->sent->start[exchange->sent->count];
    int taken;

    for (;;) {
        struct aero_buffer buffer = {0};
        int64_t i = exchange->served;

        if (i < exchange->sent->count) {
            buffer.content = exchange->received + start[i];
            buffer.capacity_bytes = capacity - start[i];
        }
        taken = aero_device_pop(&lane->device, &lane->ring, lane->form, &buffer);
        if (taken == AERO_NONE)
            return;
        if (taken == AERO_SKIPPED)
            continue;
        if (i < exchange->sent->count) {
            start[i + 1] = start[i] + buffer.length_bytes;
            if (exchange->service && buffer.refused == AERO_SOUND)
                serve_request(exchange, lane, &buffer);
            exchange->served++;
        }
        aero_device_push(&lane->device, &lane->ring, buffer.head, 0);
        if (aero_device_notify(&lane->device, &lane->ring)) {
            lane->interrupts++;
            aero_signal(lane->call);
        }
    }
}

void *aero_device_side(void *argument)
{
    struct exchange *exchange = argument;
    struct pollfd fds[AERO_LANES + 1] = {{0}};
    int64_t cpu, faults, preemptions;

    for (int i = 0; i < AERO_LANES; i++)
        fds[i] = (struct pollfd){exchange->lanes.lane[i].kick, POLLIN, 0};
    fds[AERO_LANES] = (struct pollfd){exchange->lanes.stop, POLLIN, 0};
    pthread_barrier_wait(&exchange->ready);
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    faults = aero_minor_faults();
    preemptions = aero_preemptions();
    for (;;) {
        if (poll(fds, AERO_LANES + 1, -1) < 0)
            continue; /* EINTR: nothing else can happen to open descriptors */
        for (int i = 0; i < AERO_LANES; i++)
            if (fds[i].revents) {
                aero_clear_signal(fds[i].fd);
                serve_queue(exchange, &exchange->lanes.lane[i]);
            }
        if (fds[AERO_LANES].revents)
            break;
    }
    exchange->out->device_cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    exchange->out->minor_faults = aero_minor_faults() - faults;
    exchange->out->preemptions = aero_preemptions() - preemptions;
    return NULL;
}
