/* What execute.c, crew.c and exchange.c share. */
#ifndef AEROSTAT_EXECUTE_H
#define AEROSTAT_EXECUTE_H

#include "core.h"

#include <stdbool.h>

/* One execution of a plan. */
struct run {
    const struct aero_memory *memory;
    const struct aero_ops *ops;
    const struct aero_rules *rules;
    int64_t *per_call_ns; /* NULL: calls are not timed one by one */
    uint8_t *failed;
    int pidfd; /* this process, for process_madvise */
};

/* What went wrong in one thread, and calls that had to be repeated. */
struct tally {
    int64_t repeats;
    int64_t failures;
    int64_t first_failed;
    int first_errno;
};

enum { AERO_MAX_THREADS = 64 };

int64_t aero_minor_faults(void);
void aero_count_calls(const struct aero_ops *ops, const struct aero_rules *rules,
                      struct aero_outcome *outcome);
void aero_close_outcome(struct aero_outcome *outcome, const struct tally *tally);
int aero_open_self(void);
void aero_run_span(const struct run *run, int64_t first, int64_t end, int thread,
                   struct tally *tally);
int aero_run_crew(const struct run *run, const struct aero_crew *crew,
                  struct aero_outcome *outcome, struct tally *tally);

#endif
