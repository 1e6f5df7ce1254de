/* Stage d request by request, with what a live guest does between two: it writes the pages that it is
 * about to give, on a CPU of its own, and either sleeps or runs on while the device discards. */
#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { CACHE_LINE_BYTES = 64 };

/* The guest's turn is one span of operations; `first` after the last of them ends the thread. */
struct guest {
    const struct run *run;
    const struct aero_pace *pace;
    int64_t first, end;
    sem_t turn, done;
    atomic_bool called; /* instead of `turn`, for a guest that never sleeps */
};

static void write_pages(const struct guest *guest)
{
    const struct aero_ops *ops = guest->run->ops;

    for (int64_t i = guest->first; i < guest->end; i++)
        if (guest->pace->written[i])
            memset(guest->run->memory->base + ops->offset_bytes[i], 0, ops->length_bytes[i]);
}

static void await_turn(struct guest *guest)
{
    if (!guest->pace->guest_runs) {
        while (sem_wait(&guest->turn))
            ;
        return;
    }
    while (!atomic_load_explicit(&guest->called, memory_order_acquire))
        ;
    atomic_store_explicit(&guest->called, false, memory_order_relaxed);
}

static void *live(void *argument)
{
    struct guest *guest = argument;

    for (;;) {
        await_turn(guest);
        if (guest->first >= guest->run->ops->count)
            return NULL;
        write_pages(guest);
        sem_post(&guest->done);
    }
}

static void call_guest(struct guest *guest, int64_t first, int64_t end)
{
    guest->first = first;
    guest->end = end;
    if (guest->pace->guest_runs)
        atomic_store_explicit(&guest->called, true, memory_order_release);
    else
        sem_post(&guest->turn);
}

/* Read through a buffer, so that caches and TLB hold that instead of what stage d needs. */
static void evict(const uint8_t *buffer, uint64_t size_bytes)
{
    for (uint64_t at = 0; at < size_bytes; at += CACHE_LINE_BYTES)
        (void)*(const volatile uint8_t *)(buffer + at);
}

static int64_t end_of_request(const struct aero_ops *ops, int64_t first)
{
    int64_t end = first + 1;

    while (end < ops->count && ops->request[end] == ops->request[first])
        end++;
    return end;
}

static void serve(struct guest *guest, const uint8_t *buffer, int64_t *span_ns,
                  struct aero_outcome *outcome, struct tally *tally)
{
    const struct run *run = guest->run;
    int64_t cpu, wall, faults, preemptions;

    for (int64_t first = 0, end; first < run->ops->count; first = end) {
        end = end_of_request(run->ops, first);
        call_guest(guest, first, end);
        while (sem_wait(&guest->done))
            ;
        evict(buffer, guest->pace->evict_bytes);
        faults = aero_minor_faults();
        preemptions = aero_preemptions();
        cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
        wall = aero_now_ns(CLOCK_MONOTONIC);
        aero_run_span(run, first, end, 0, tally);
        wall = aero_now_ns(CLOCK_MONOTONIC) - wall;
        cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
        span_ns[first] = wall < cpu ? wall : cpu;
        outcome->wall_ns += wall;
        outcome->cpu_ns += cpu;
        outcome->minor_faults += aero_minor_faults() - faults;
        outcome->preemptions += aero_preemptions() - preemptions;
    }
    call_guest(guest, run->ops->count, run->ops->count);
}

static int start(pthread_t *thread, struct guest *guest)
{
    pthread_attr_t attr;
    cpu_set_t set;
    int error;

    CPU_ZERO(&set);
    CPU_SET(guest->pace->guest_cpu, &set);
    pthread_attr_init(&attr);
    error = pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
    if (!error)
        error = pthread_create(thread, &attr, live, guest);
    pthread_attr_destroy(&attr);
    return error;
}

/* As aero_execute, for the plan of one thread. Each request's own time goes to `span_ns` at its first
 * operation: the lesser of wall and CPU time, since what waited for a CPU is not its own, and the
 * CPU clock is the slower one to read. The outcome's times are sums over requests. */
int aero_execute_paced(const struct aero_memory *memory, const struct aero_ops *ops,
                       const struct aero_rules *rules, const struct aero_pace *pace,
                       int64_t *span_ns, uint8_t *failed, struct aero_outcome *outcome)
{
    struct run run = {memory, ops, rules, NULL, failed, -1, NULL};
    struct guest guest = {.run = &run, .pace = pace};
    struct tally tally = {0};
    uint8_t *buffer = NULL;
    pthread_t thread;
    int error;

    *outcome = (struct aero_outcome){.first_failed = aero_check(memory, ops, rules, 1)};
    if (outcome->first_failed >= 0)
        return EINVAL;
    if (pace->evict_bytes) {
        buffer = mmap(NULL, pace->evict_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (buffer == MAP_FAILED)
            return errno;
    }
    if (ops->joined)
        run.pidfd = aero_open_self();
    sem_init(&guest.turn, 0, 0);
    sem_init(&guest.done, 0, 0);
    error = ops->joined && run.pidfd < 0 ? errno : start(&thread, &guest);
    if (!error) {
        serve(&guest, buffer, span_ns, outcome, &tally);
        pthread_join(thread, NULL);
    }
    sem_destroy(&guest.turn);
    sem_destroy(&guest.done);
    if (run.pidfd >= 0)
        close(run.pidfd);
    if (buffer)
        munmap(buffer, pace->evict_bytes);
    aero_count_calls(ops, rules, outcome);
    aero_close_outcome(outcome, &tally);
    return error;
}
