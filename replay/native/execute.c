/* Stage d: the plan's operations, carried out and timed as a whole. */
#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434 /* Linux 5.3 */
#endif

int64_t aero_now_ns(int clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int64_t aero_minor_faults(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt;
}

int64_t aero_preemptions(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
}

int aero_open_self(void)
{
    return (int)syscall(SYS_pidfd_open, getpid(), 0);
}

static inline int call_one(const struct aero_memory *memory, const struct aero_rules *rules,
                           uint8_t advice, uint64_t offset, uint64_t length)
{
    switch (rules->call[advice]) {
    case AERO_MADVISE:
        return madvise(memory->base + offset, length, rules->value[advice]);
    case AERO_FALLOCATE:
        return fallocate(memory->fd, rules->value[advice], (off_t)offset, (off_t)length);
    case AERO_REMAP:
        return mmap(memory->base + offset, length, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED;
    default:
        /* Keeps the loop of the floor from being optimised away. */
        __asm__ volatile("" : : "r"(offset), "r"(length) : "memory");
        return 0;
    }
}

/* Rare, so kept out of the loops. */
static void __attribute__((noinline)) note(const struct run *run, struct tally *tally, int64_t i)
{
    if (tally->failures++ == 0) {
        tally->first_failed = i;
        tally->first_errno = errno;
    }
    run->failed[i] = 1;
}

/* Operations [first, end) in one process_madvise, repeated where it stops short: it does so after
 * 2 GiB less a page (MAX_RW_COUNT), and before a range that fails, which is then left out. */
static void call_many(const struct run *run, int64_t first, int64_t end, struct tally *tally)
{
    const struct aero_ops *ops = run->ops;
    uint8_t advice = ops->advice[first];
    struct iovec range[MAX_RANGES];
    int64_t count = end - first, at = 0;

    for (int64_t i = 0; i < count; i++) {
        range[i].iov_base = run->memory->base + ops->offset_bytes[first + i];
        range[i].iov_len = ops->length_bytes[first + i];
    }
    if (run->rules->call[advice] == AERO_NOTHING) {
        __asm__ volatile("" : : "r"(range) : "memory");
        return;
    }
    for (;; tally->repeats++) {
        ssize_t done = syscall(SYS_process_madvise, run->pidfd, range + at, count - at,
                               run->rules->value[advice], 0);

        if (done <= 0) {
            errno = done < 0 ? errno : EIO;
            note(run, tally, first + at++);
            done = 0;
        }
        for (; at < count && (size_t)done >= range[at].iov_len; at++)
            done -= range[at].iov_len;
        if (at == count)
            return;
        range[at].iov_base = (uint8_t *)range[at].iov_base + done;
        range[at].iov_len -= done;
    }
}

/* The calls of one thread among operations [first, end). The constants make a loop for each kind of
 * plan: two clock reads cost about 46 ns, a tenth of an empty madvise. */
static inline __attribute__((always_inline)) void
run_calls(const struct run *run, int64_t first, int64_t end, int thread, struct tally *tally,
          const bool timed, const bool vectors, const bool threads)
{
    const struct aero_ops *ops = run->ops;
    int64_t begin = 0;

    for (int64_t i = first, next; i < end; i = next) {
        next = i + 1;
        if (vectors)
            while (next < end && ops->joined[next])
                next++;
        if (threads && ops->thread[i] != thread)
            continue;
        if (timed)
            begin = aero_now_ns(CLOCK_MONOTONIC);
        if (vectors && next > i + 1)
            call_many(run, i, next, tally);
        else if (call_one(run->memory, run->rules, ops->advice[i], ops->offset_bytes[i],
                          ops->length_bytes[i]))
            note(run, tally, i);
        if (timed) {
            run->per_call_ns[i] = aero_now_ns(CLOCK_MONOTONIC) - begin;
            if (thread == 0 && run->watcher && next >= run->watcher->due)
                aero_watcher_sample(run->watcher, next);
        }
    }
}

void aero_run_span(const struct run *run, int64_t first, int64_t end, int thread,
                   struct tally *tally)
{
    bool timed = run->per_call_ns, vectors = run->ops->joined, threads = run->ops->thread;

    if (!timed && !vectors && !threads)
        run_calls(run, first, end, thread, tally, false, false, false);
    else if (!timed && vectors && !threads)
        run_calls(run, first, end, thread, tally, false, true, false);
    else
        run_calls(run, first, end, thread, tally, timed, vectors, threads);
}

/* Calls and bytes as planned. */
void aero_count_calls(const struct aero_ops *ops, const struct aero_rules *rules,
                      struct aero_outcome *outcome)
{
    for (int64_t i = 0; i < ops->count; i++) {
        outcome->bytes += ops->length_bytes[i];
        outcome->calls += rules->call[ops->advice[i]] != AERO_NOTHING &&
                          !(ops->joined && ops->joined[i]);
    }
}

/* Add what could only be known afterwards. */
void aero_close_outcome(struct aero_outcome *outcome, const struct tally *tally)
{
    outcome->calls += tally->repeats;
    outcome->failures = tally->failures;
    outcome->first_failed = tally->failures ? tally->first_failed : -1;
    outcome->first_errno = tally->first_errno;
}

static void run_alone(const struct run *run, struct aero_outcome *outcome, struct tally *tally)
{
    int64_t faults = aero_minor_faults(), preemptions = aero_preemptions();
    int64_t cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    int64_t wall = aero_now_ns(CLOCK_MONOTONIC);

    aero_run_span(run, 0, run->ops->count, 0, tally);
    outcome->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    outcome->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    outcome->minor_faults = aero_minor_faults() - faults;
    outcome->preemptions = aero_preemptions() - preemptions;
}

/* 0; EINVAL when an operation is refused; or why there is no handle on this process, no thread or
 * nothing to sample. Then none was carried out. `watch` may be NULL. */
int aero_execute(const struct aero_memory *memory, const struct aero_ops *ops,
                 const struct aero_rules *rules, const struct aero_crew *crew,
                 struct aero_watch *watch, uint8_t *failed, struct aero_outcome *outcome)
{
    struct watcher watcher;
    struct run run = {memory, ops, rules, NULL, failed, -1, NULL};
    struct tally tally = {0};
    int error = 0;

    *outcome = (struct aero_outcome){.first_failed = aero_check(memory, ops, rules, crew->threads)};
    if (outcome->first_failed >= 0)
        return EINVAL;
    aero_count_calls(ops, rules, outcome);
    if (watch) {
        if ((error = aero_watcher_open(&watcher, watch, memory)))
            return error;
        run.per_call_ns = watch->per_call_ns;
        run.watcher = &watcher;
    }
    if (ops->joined && (run.pidfd = aero_open_self()) < 0)
        error = errno;
    else if (ops->thread && crew->threads > 1)
        error = aero_run_crew(&run, crew, outcome, &tally);
    else
        run_alone(&run, outcome, &tally);
    if (watch)
        aero_watcher_close(&watcher, ops->count);
    if (run.pidfd >= 0)
        close(run.pidfd);
    aero_close_outcome(outcome, &tally);
    return error;
}
