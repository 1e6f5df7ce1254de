/* What execute.c, crew.c, exchange.c and paced.c share. */
#ifndef AEROSTAT_EXECUTE_H
#define AEROSTAT_EXECUTE_H

#include "core.h"

#include <stdbool.h>

#ifndef SYS_process_madvise
#define SYS_process_madvise 440 /* Linux 5.10 */
#endif

enum { MAX_RANGES = 1024 /* UIO_MAXIOV */ };

/* One execution of a plan. */
struct run {
    const struct aero_memory *memory;
    const struct aero_ops *ops;
    const struct aero_rules *rules;
    int64_t *per_call_ns; /* NULL: calls are not timed one by one */
    uint8_t *failed;
    int pidfd;               /* this process, for process_madvise */
    struct watcher *watcher; /* NULL: memory is not sampled */
};

/* What went wrong in one thread, and calls that had to be repeated. */
struct tally {
    int64_t repeats;
    int64_t failures;
    int64_t first_failed;
    int first_errno;
};

/* A watch that is under way. */
struct watcher {
    struct aero_watch *watch;
    int statm, file; /* descriptors; -1 where there is no such file */
    int64_t begin_ns;
    int64_t due; /* operations that must be done before the next sample */
};

enum { AERO_MAX_THREADS = 64 };

int aero_watcher_open(struct watcher *watcher, struct aero_watch *watch,
                      const struct aero_memory *memory);
void aero_watcher_sample(struct watcher *watcher, int64_t operations);
void aero_watcher_close(struct watcher *watcher, int64_t operations);

int64_t aero_minor_faults(void);
void aero_count_calls(const struct aero_ops *ops, const struct aero_rules *rules,
                      struct aero_outcome *outcome);
void aero_close_outcome(struct aero_outcome *outcome, const struct tally *tally);
int64_t aero_preemptions(void);
int aero_open_self(void);
void aero_run_span(const struct run *run, int64_t first, int64_t end, int thread,
                   struct tally *tally);
int aero_run_crew(const struct run *run, const struct aero_crew *crew,
                  struct aero_outcome *outcome, struct tally *tally);

#endif
