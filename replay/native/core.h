/* What Python may call. build_core.py reads the declarations between the two cdef lines, so they
 * use plain C without macros. Pages are 4 KiB; offsets are bytes from the start of the mapping. */
#ifndef AEROSTAT_CORE_H
#define AEROSTAT_CORE_H

#include <stdint.h>

/* cdef begin */
struct aero_memory {
    uint8_t *base;
    uint64_t size_bytes;
    int fd; /* file behind the mapping, -1 for anonymous memory */
    int shared; /* MAP_SHARED */
};

/* The operations of a plan, in order. The last three columns may be NULL: every operation is a call
 * of its own, and one thread makes them all. */
struct aero_ops {
    const uint8_t *advice;
    const uint64_t *offset_bytes;
    const uint64_t *length_bytes;
    int64_t count;
    const uint8_t *joined;  /* 1: shares the process_madvise of the operation before it */
    const uint8_t *thread;  /* which thread makes the call */
    const int64_t *request; /* ascending; all threads wait for each other where it changes */
};

enum aero_call { AERO_REFUSED, AERO_NOTHING, AERO_MADVISE, AERO_FALLOCATE, AERO_REMAP };
enum aero_effect { AERO_KEEPS, AERO_FREES, AERO_FREES_LATER, AERO_FILLS };

/* For each advice code of a plan: how it is carried out and what it does to a page. */
struct aero_rules {
    uint8_t call[256];
    int32_t value[256];
    uint8_t effect[256];
};

struct aero_outcome {
    int64_t wall_ns;
    int64_t cpu_ns;
    int64_t calls;
    int64_t minor_faults;
    int64_t preemptions; /* of the thread that leads: it could run, and another was let run */
    uint64_t bytes;
    int64_t failures;
    int64_t first_failed; /* index of the operation, -1 when none failed */
    int32_t first_errno;
};

/* The threads of a plan: thread i runs on CPU cpus[i], or anywhere where cpus is NULL. */
struct aero_crew {
    int threads;
    const int *cpus;
};

/* A look at an execution that is not timed as a whole: each call by itself, and the memory behind the
 * process at the begin, at the end, and after every `every` operations. */
struct aero_watch {
    int64_t *per_call_ns; /* one an operation; left alone where it shares the call before it */
    int64_t *at_ns;       /* since the first sample; the columns hold `capacity` of them */
    int64_t *operations;  /* done by then */
    int64_t *rss_bytes;   /* of this process (/proc/self/statm) */
    int64_t *file_bytes;  /* of the shared file behind the memory, -1 where there is none */
    int64_t capacity;
    int64_t every;
    int64_t samples;
};

struct aero_touch {
    int64_t wall_ns;
    int64_t cpu_ns;
    int64_t minor_faults;
    int64_t pages;
};

/* What a page is expected to hold. */
enum aero_page { AERO_NEVER, AERO_STAMPED, AERO_GONE, AERO_LAZY, AERO_FILLED };

struct aero_findings {
    int64_t stamped_checked;
    int64_t gone_checked;
    int64_t lazy_checked;
    int64_t lazy_freed;
    int64_t wrong;
    int64_t first_wrong_page; /* -1 when every page is right */
};

/* Wire forms, numbered as tracer.trace.schema.Wire. */
enum aero_wire { AERO_PFNS, AERO_RANGE_WORDS, AERO_SCATTERLIST };

struct aero_map {
    const uint64_t *gpa;
    const uint64_t *length_bytes;
    const uint64_t *offset_bytes;
    int64_t count;
};

struct aero_translation {
    int64_t wall_ns;
    int64_t cpu_ns;
    int64_t entries;
    int64_t pages;
    int64_t rejected;
    uint64_t checksum; /* sum over pieces of offset_bytes + length_bytes */
};

/* Requests: request i is wire[start[i], start[i + 1]), of form[i]. */
struct aero_content {
    const uint8_t *wire;
    const uint64_t *start;
    const uint8_t *form;
    int64_t count;
};

/* Room for runs of pages, ascending within each group. `ended` has one element for each request that
 * is merged: how many runs there are once it, and its group if it is the last of that, is done. */
struct aero_runs {
    uint64_t *first_page;
    uint64_t *pages;
    int64_t *ended;
    int64_t capacity;
};

/* Requests to merge, in this order. */
struct aero_wanted {
    const int64_t *order;     /* numbers of requests */
    const int64_t *group;     /* equal neighbours are merged together */
    const uint8_t *taken_out; /* 1: what the request names is unmarked instead */
    int64_t count;
};

struct aero_gathering {
    int64_t wall_ns;
    int64_t cpu_ns;
    int64_t runs;
    int64_t rejected;
};

/* What a guest does between two requests (aero_execute_paced). */
struct aero_pace {
    const uint8_t *written; /* for each operation, 1: the guest writes its pages just before */
    int guest_cpu;          /* CPU of the thread that writes */
    int guest_runs;         /* it runs on while the device works, where it would sleep */
    uint64_t evict_bytes;   /* read by the device between writing and discarding */
};

/* What an operation will find (aero_foresee); states of a page, and counts of 4 KiB pages. */
enum aero_found_page {
    AERO_FOUND_NOTHING,
    AERO_FOUND_SMALL,
    AERO_FOUND_HUGE,
    AERO_FOUND_SPLIT,
    AERO_FOUND_LAZY, /* of 4 KiB, and given to be freed later before */
    AERO_FOUND_EMPTIED, /* nothing, but a page table that has to be walked to see it */
};

struct aero_found {
    uint32_t small_pages;
    uint32_t split_pages; /* of huge pages that an earlier operation has split */
    uint32_t huge_pages;  /* of huge pages that stay whole, or go whole */
    uint32_t splits;      /* huge pages that this operation splits; their pages count as split */
    uint32_t lazy_pages;  /* that are to be freed later already, and again */
    uint32_t emptied_pages; /* that are not there, where there is a page table */
    uint32_t freed_pages; /* of 4 KiB, no huge pages */
    uint32_t taken_pages; /* that it fills where there was nothing */
};

struct aero_siblings;
struct aero_resting;

uint8_t *aero_map_memory(uint64_t size_bytes, int fd, int shared, int *error);
int aero_unmap_memory(uint8_t *base, uint64_t size_bytes);
int aero_advise_all(const struct aero_memory *memory, int advice);
int aero_populate(const struct aero_memory *memory, const uint64_t *first_page,
                  const uint64_t *pages, int64_t count);
int aero_stamp(const struct aero_memory *memory, const uint8_t *state, uint64_t seed);
int aero_touch(const struct aero_memory *memory, const uint64_t *first_page, const uint64_t *pages,
               int64_t count, struct aero_touch *out);
int aero_huge(const struct aero_memory *memory, uint8_t *huge);
int aero_residency(const struct aero_memory *memory, uint8_t *resident);
int aero_verify(const struct aero_memory *memory, const uint8_t *state, const uint8_t *resident,
                uint64_t seed, struct aero_findings *findings);

int64_t aero_check(const struct aero_memory *memory, const struct aero_ops *ops,
                   const struct aero_rules *rules, int threads);
int aero_execute(const struct aero_memory *memory, const struct aero_ops *ops,
                 const struct aero_rules *rules, const struct aero_crew *crew,
                 struct aero_watch *watch, uint8_t *failed, struct aero_outcome *outcome);
int aero_expect(const struct aero_memory *memory, const struct aero_ops *ops,
                const struct aero_rules *rules, const uint8_t *failed, uint8_t *state);
int aero_execute_paced(const struct aero_memory *memory, const struct aero_ops *ops,
                       const struct aero_rules *rules, const struct aero_pace *pace,
                       int64_t *span_ns, uint8_t *failed, struct aero_outcome *outcome);
int aero_foresee(const struct aero_memory *memory, const struct aero_ops *ops,
                 const struct aero_rules *rules, int huge_only, uint8_t *state,
                 struct aero_found *found);
int aero_probe(int advice, int vector);

struct aero_siblings *aero_siblings_start(int count, const int *cpus,
                                          const struct aero_memory *memory,
                                          const uint64_t *offset_bytes, int64_t pages, int *error);
void aero_siblings_stop(struct aero_siblings *siblings);
struct aero_resting *aero_resting_start(int cpu, int *error);
void aero_resting_stop(struct aero_resting *resting);

int aero_translate(const uint8_t *wire, const uint64_t *start, const uint8_t *form, int64_t count,
                   const struct aero_map *map, struct aero_translation *out);
int aero_gather(const struct aero_content *content, const struct aero_wanted *wanted,
                const struct aero_map *map, uint64_t memory_pages, const struct aero_runs *runs,
                struct aero_gathering *out);
/* cdef end */

enum { AERO_PAGE_SHIFT = 12, AERO_PAGE_BYTES = 1 << AERO_PAGE_SHIFT };

int64_t aero_now_ns(int clock);

#endif
