/* Threads that run beside stage d, as a VMM's vCPU threads do. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

/* Threads that keep the address space live on other CPUs, so that each discard must interrupt them to
 * flush their TLB. They read pages of the memory under test, as a guest does; their caller names pages
 * that are resident and that no operation touches, so that reading changes nothing. */
struct aero_siblings {
    atomic_bool stop;
    atomic_int running;
    const uint8_t *base;
    const uint64_t *offset_bytes;
    int64_t pages;
    int count;
    pthread_t thread[];
};

static void read_all(const struct aero_siblings *siblings)
{
    for (int64_t i = 0; i < siblings->pages; i++)
        (void)*(const volatile uint8_t *)(siblings->base + siblings->offset_bytes[i]);
}

static void *spin(void *argument)
{
    struct aero_siblings *siblings = argument;

    read_all(siblings);
    atomic_fetch_add(&siblings->running, 1);
    while (!atomic_load_explicit(&siblings->stop, memory_order_relaxed))
        read_all(siblings);
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

/* Start `count` threads, thread i on CPU cpus[i], and return when all of them spin. Each reads one
 * byte at each of `pages` offsets from the start of the memory, over and over; the offsets must stay
 * until the threads are stopped. */
struct aero_siblings *aero_siblings_start(int count, const int *cpus,
                                          const struct aero_memory *memory,
                                          const uint64_t *offset_bytes, int64_t pages, int *error)
{
    struct aero_siblings *siblings = calloc(1, sizeof(*siblings) + count * sizeof(pthread_t));

    *error = siblings ? 0 : ENOMEM;
    if (siblings) {
        siblings->base = memory->base;
        siblings->offset_bytes = offset_bytes;
        siblings->pages = pages;
    }
    for (int64_t i = 0; siblings && i < pages && !*error; i++)
        *error = offset_bytes[i] < memory->size_bytes ? 0 : EINVAL;
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
