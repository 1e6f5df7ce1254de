/* A plan of several threads. They are made before the clock is read and wait; each request that has
 * work for more than the first of them is handed out, and all have ended before the next begins. */
#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

struct crew {
    const struct run *run;
    pthread_mutex_t gate; /* held until all threads could be made */
    pthread_barrier_t barrier;
    int64_t first, end; /* the request's operations; the barrier orders access to them */
    bool stop;
};

struct member {
    struct crew *crew;
    pthread_t handle;
    int number;
    struct tally tally;
    int64_t cpu_ns;
    int64_t faults;
};

static void *serve(void *argument)
{
    struct member *self = argument;
    struct crew *crew = self->crew;
    int64_t cpu, faults;
    bool stop;

    pthread_mutex_lock(&crew->gate);
    stop = crew->stop;
    pthread_mutex_unlock(&crew->gate);
    if (stop)
        return NULL;
    pthread_barrier_wait(&crew->barrier); /* all are there */
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    faults = aero_minor_faults();
    for (;;) {
        pthread_barrier_wait(&crew->barrier); /* work */
        if (crew->stop)
            break;
        aero_run_span(crew->run, crew->first, crew->end, self->number, &self->tally);
        pthread_barrier_wait(&crew->barrier); /* all have ended */
    }
    self->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    self->faults = aero_minor_faults() - faults;
    return NULL;
}

static int start(struct member *member, const int *cpus)
{
    pthread_attr_t attr;
    cpu_set_t set;
    int error;

    pthread_attr_init(&attr);
    if (cpus) {
        CPU_ZERO(&set);
        CPU_SET(cpus[member->number], &set);
        pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
    }
    error = pthread_create(&member->handle, &attr, serve, member);
    pthread_attr_destroy(&attr);
    return error;
}

/* Operations of the request that begins at `first`, and whether several threads share them. */
static int64_t request_end(const struct aero_ops *ops, int64_t first, bool *shared)
{
    int64_t end = first;

    for (*shared = false; end < ops->count && ops->request[end] == ops->request[first]; end++)
        *shared |= ops->thread[end] > 0;
    return end;
}

static void lead(struct crew *crew, struct tally *tally)
{
    const struct aero_ops *ops = crew->run->ops;
    bool shared;

    for (int64_t first = 0, end; first < ops->count; first = end) {
        end = request_end(ops, first, &shared);
        if (!shared) {
            aero_run_span(crew->run, first, end, 0, tally);
            continue;
        }
        crew->first = first;
        crew->end = end;
        pthread_barrier_wait(&crew->barrier);
        aero_run_span(crew->run, first, end, 0, tally);
        pthread_barrier_wait(&crew->barrier);
    }
}

static void time_lead(struct crew *crew, struct aero_outcome *outcome, struct tally *tally)
{
    int64_t wall, cpu, faults, preemptions;

    pthread_barrier_wait(&crew->barrier);
    faults = aero_minor_faults();
    preemptions = aero_preemptions();
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    wall = aero_now_ns(CLOCK_MONOTONIC);
    lead(crew, tally);
    outcome->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    outcome->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    outcome->minor_faults = aero_minor_faults() - faults;
    outcome->preemptions = aero_preemptions() - preemptions;
    crew->stop = true;
    pthread_barrier_wait(&crew->barrier);
}

static void add(struct tally *total, const struct tally *part)
{
    if (part->failures && (!total->failures || part->first_failed < total->first_failed)) {
        total->first_failed = part->first_failed;
        total->first_errno = part->first_errno;
    }
    total->failures += part->failures;
    total->repeats += part->repeats;
}

/* 0, or why a thread cannot be made; then nothing was carried out. This thread is number 0. */
int aero_run_crew(const struct run *run, const struct aero_crew *plan,
                  struct aero_outcome *outcome, struct tally *tally)
{
    struct crew crew = {.run = run, .gate = PTHREAD_MUTEX_INITIALIZER};
    struct member member[AERO_MAX_THREADS] = {0};
    int error = 0, others = 0;

    if (plan->threads > AERO_MAX_THREADS)
        return EINVAL;
    pthread_barrier_init(&crew.barrier, NULL, plan->threads);
    pthread_mutex_lock(&crew.gate);
    for (int i = 1; i < plan->threads && !error; i++) {
        member[i] = (struct member){.crew = &crew, .number = i};
        error = start(&member[i], plan->cpus);
        others += !error;
    }
    crew.stop = error != 0;
    pthread_mutex_unlock(&crew.gate);
    if (!error)
        time_lead(&crew, outcome, tally);
    for (int i = 1; i <= others; i++) {
        pthread_join(member[i].handle, NULL);
        add(tally, &member[i].tally);
        outcome->cpu_ns += member[i].cpu_ns;
        outcome->minor_faults += member[i].faults;
    }
    pthread_barrier_destroy(&crew.barrier);
    return error;
}
