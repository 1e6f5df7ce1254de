/* A thread that sleeps beside stage d, as the vCPU threads of an idle VM do. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <time.h>

/* A flush looks at every CPU that an address space has been on (mm_cpumask, flush_tlb_mm_range of
 * arch/x86/mm/tlb.c), which costs each discard even where those CPUs sleep and are not interrupted.
 * The kernel forgets a CPU that went over to other work, so the thread wakes now and then. */
enum { WAKE_NS = 20000000, SECOND_NS = 1000000000 };

struct aero_resting {
    sem_t began, stop;
    pthread_t thread;
};

static void *rest(void *argument)
{
    struct aero_resting *resting = argument;
    struct timespec until;

    sem_post(&resting->began);
    do {
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += WAKE_NS;
        until.tv_sec += until.tv_nsec / SECOND_NS;
        until.tv_nsec %= SECOND_NS;
    } while (sem_clockwait(&resting->stop, CLOCK_MONOTONIC, &until));
    return NULL;
}

/* Start it on a CPU, and return when it has run there. */
struct aero_resting *aero_resting_start(int cpu, int *error)
{
    struct aero_resting *resting = calloc(1, sizeof(*resting));
    pthread_attr_t attr;
    cpu_set_t set;

    *error = resting ? 0 : ENOMEM;
    if (!resting)
        return NULL;
    sem_init(&resting->began, 0, 0);
    sem_init(&resting->stop, 0, 0);
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_attr_init(&attr);
    pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
    *error = pthread_create(&resting->thread, &attr, rest, resting);
    pthread_attr_destroy(&attr);
    if (*error) {
        free(resting);
        return NULL;
    }
    while (sem_wait(&resting->began))
        ;
    return resting;
}

void aero_resting_stop(struct aero_resting *resting)
{
    if (!resting)
        return;
    sem_post(&resting->stop);
    pthread_join(resting->thread, NULL);
    sem_destroy(&resting->began);
    sem_destroy(&resting->stop);
    free(resting);
}
