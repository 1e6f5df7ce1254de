/* Threads that run beside stage d, as a VMM's vCPU threads do. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

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
