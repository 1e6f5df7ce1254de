/* Stage d: the plan's operations, carried out one after another and timed as a whole. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

int64_t aero_now_ns(int clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int64_t minor_faults(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt;
}

/* Index of the first operation that must not be carried out, -1 when all may be. */
int64_t aero_check(const struct aero_memory *memory, const struct aero_ops *ops,
                   const struct aero_rules *rules)
{
    for (int64_t i = 0; i < ops->count; i++) {
        uint64_t offset = ops->offset_bytes[i], length = ops->length_bytes[i];

        if ((offset | length) % AERO_PAGE_BYTES || length == 0)
            return i;
        /* Written so that it cannot wrap. */
        if (offset >= memory->size_bytes || length > memory->size_bytes - offset)
            return i;
        if (rules->call[ops->advice[i]] == AERO_REFUSED)
            return i;
        if (rules->call[ops->advice[i]] == AERO_FALLOCATE && memory->fd < 0)
            return i;
    }
    return -1;
}

static inline int call_one(const struct aero_memory *memory, const struct aero_rules *rules,
                           uint8_t advice, uint64_t offset, uint64_t length)
{
    switch (rules->call[advice]) {
    case AERO_MADVISE:
        return madvise(memory->base + offset, length, rules->value[advice]);
    case AERO_FALLOCATE:
        return fallocate(memory->fd, rules->value[advice], (off_t)offset, (off_t)length);
    default:
        /* Keeps the loop of the floor from being optimised away. */
        __asm__ volatile("" : : "r"(offset), "r"(length) : "memory");
        return 0;
    }
}

static inline void note(struct aero_outcome *outcome, int64_t index, int result)
{
    if (result == 0)
        return;
    if (outcome->failures++ == 0) {
        outcome->first_failed = index;
        outcome->first_errno = errno;
    }
}

static void run_all(const struct aero_memory *memory, const struct aero_ops *ops,
                    const struct aero_rules *rules, struct aero_outcome *outcome)
{
    for (int64_t i = 0; i < ops->count; i++) {
        int result = call_one(memory, rules, ops->advice[i], ops->offset_bytes[i],
                              ops->length_bytes[i]);
        note(outcome, i, result);
    }
}

/* Apart from run_all because two clock reads cost about 46 ns, a tenth of an empty madvise. */
static void run_each(const struct aero_memory *memory, const struct aero_ops *ops,
                     const struct aero_rules *rules, int64_t *per_op_ns,
                     struct aero_outcome *outcome)
{
    for (int64_t i = 0; i < ops->count; i++) {
        int64_t begin = aero_now_ns(CLOCK_MONOTONIC);
        int result = call_one(memory, rules, ops->advice[i], ops->offset_bytes[i],
                              ops->length_bytes[i]);
        per_op_ns[i] = aero_now_ns(CLOCK_MONOTONIC) - begin;
        note(outcome, i, result);
    }
}

/* 0, or EINVAL when an operation is refused; then none was carried out. */
int aero_execute(const struct aero_memory *memory, const struct aero_ops *ops,
                 const struct aero_rules *rules, int64_t *per_op_ns, struct aero_outcome *outcome)
{
    int64_t wall, cpu, faults;

    *outcome = (struct aero_outcome){.first_failed = aero_check(memory, ops, rules)};
    if (outcome->first_failed >= 0)
        return EINVAL;
    for (int64_t i = 0; i < ops->count; i++) {
        outcome->bytes += ops->length_bytes[i];
        outcome->calls += rules->call[ops->advice[i]] != AERO_NOTHING;
    }
    faults = minor_faults();
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    wall = aero_now_ns(CLOCK_MONOTONIC);
    if (per_op_ns)
        run_each(memory, ops, rules, per_op_ns, outcome);
    else
        run_all(memory, ops, rules, outcome);
    outcome->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    outcome->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    outcome->minor_faults = minor_faults() - faults;
    return 0;
}

static uint8_t after(uint8_t page, uint8_t effect)
{
    switch (effect) {
    case AERO_FREES:
        return page == AERO_NEVER ? AERO_NEVER : AERO_GONE;
    case AERO_FREES_LATER:
        return page == AERO_STAMPED ? AERO_LAZY : page;
    case AERO_FILLS:
        return page == AERO_NEVER || page == AERO_GONE ? AERO_FILLED : page;
    default:
        return page;
    }
}

/* Work out, without touching memory, what each page (one byte of `state`) must be after the plan. */
int aero_expect(const struct aero_memory *memory, const struct aero_ops *ops,
                const struct aero_rules *rules, uint8_t *state)
{
    if (aero_check(memory, ops, rules) >= 0)
        return EINVAL;
    for (int64_t i = 0; i < ops->count; i++) {
        uint64_t first = ops->offset_bytes[i] >> AERO_PAGE_SHIFT;
        uint64_t end = first + (ops->length_bytes[i] >> AERO_PAGE_SHIFT);
        uint8_t effect = rules->effect[ops->advice[i]];

        for (uint64_t page = first; page < end && effect != AERO_KEEPS; page++)
            state[page] = after(state[page], effect);
    }
    return 0;
}

/* Threads that keep the address space live on other CPUs, as a VMM's vCPU threads do: each discard
 * must then interrupt them to flush their TLB. They read 16 KiB of their own, so the memory under
 * test stays as it is. */
enum { WORKING_SET_BYTES = 16384 };

struct aero_siblings {
    atomic_bool stop;
    atomic_int running;
    int count;
    pthread_t thread[];
};

static void *spin(void *argument)
{
    struct aero_siblings *siblings = argument;
    volatile uint8_t working_set[WORKING_SET_BYTES];

    for (size_t i = 0; i < sizeof(working_set); i += AERO_PAGE_BYTES)
        working_set[i] = 1;
    atomic_fetch_add(&siblings->running, 1);
    while (!atomic_load_explicit(&siblings->stop, memory_order_relaxed))
        for (size_t i = 0; i < sizeof(working_set); i += 64)
            (void)working_set[i];
    return NULL;
}

void aero_siblings_stop(struct aero_siblings *siblings)
{
    if (!siblings)
        return;
    atomic_store(&siblings->stop, true);
    for (int i = 0; i < siblings->count; i++)
        pthread_join(siblings->thread[i], NULL);
    free(siblings);
}

/* Start `count` threads, thread i on CPU cpus[i], and return when all of them spin. */
struct aero_siblings *aero_siblings_start(int count, const int *cpus, int *error)
{
    struct aero_siblings *siblings = calloc(1, sizeof(*siblings) + count * sizeof(pthread_t));

    *error = siblings ? 0 : ENOMEM;
    for (int i = 0; siblings && i < count && !*error; i++) {
        pthread_attr_t attr;
        cpu_set_t set;

        CPU_ZERO(&set);
        CPU_SET(cpus[i], &set);
        pthread_attr_init(&attr);
        pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
        *error = pthread_create(&siblings->thread[i], &attr, spin, siblings);
        pthread_attr_destroy(&attr);
        siblings->count += !*error;
    }
    if (*error) {
        aero_siblings_stop(siblings);
        return NULL;
    }
    while (atomic_load(&siblings->running) < count)
        sched_yield();
    return siblings;
}
