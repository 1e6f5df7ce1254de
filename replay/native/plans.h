/* What planning asks of C: requests laid on memory, and ascending lists. Memory is not touched. */
#ifndef AEROSTAT_PLANS_H
#define AEROSTAT_PLANS_H

#include "core.h"

/* cdef begin */
/* Recorded requests: request i names the runs run_offsets[i] to run_offsets[i + 1], in wire order.
 * Where `pages` is negative, the PFNs of a run fall. */
struct aero_requests {
    const uint8_t *queue;
    const int64_t *run_offsets;
    const uint64_t *pfn;
    const int32_t *pages;
    int64_t count;
};

/* Where regions of guest memory, ascending, lie in the replayed memory. */
struct aero_layout {
    const int64_t *start_pfn;
    const int64_t *end_pfn;
    const int64_t *base_page;
    int64_t count;
};

struct aero_impossible {
    int64_t empty;
    int64_t beyond;
    int64_t below;
};

void aero_check_runs(const uint64_t *pfn, const int32_t *pages, int64_t count,
                     struct aero_impossible *found);
void aero_request_pages(const struct aero_requests *requests, int64_t *out);
int64_t aero_expand(const int64_t *pfn, const int64_t *pages, int64_t count, int64_t *out);
int64_t aero_select_runs(const struct aero_requests *requests, uint32_t queues,
                         const struct aero_layout *layout, int64_t room, int64_t *page,
                         int64_t *pages, int64_t *request);
int64_t aero_select_pages(const struct aero_requests *requests, uint32_t queues,
                          const struct aero_layout *layout, int64_t *page, int64_t *request);
int64_t aero_merge(const int64_t *start, const int64_t *pages, const int64_t *group, int64_t count,
                   int64_t *out_start, int64_t *out_pages, int64_t *out_group);
int64_t aero_sweep(const int64_t *first_start, const int64_t *first_pages, int64_t first_count,
                   const int64_t *second_start, const int64_t *second_pages, int64_t second_count,
                   int wanted, int64_t *out_start, int64_t *out_pages);
void aero_weave(const int64_t *first, int64_t first_count, const int64_t *second,
                int64_t second_count, int64_t *order);
/* cdef end */

#endif
