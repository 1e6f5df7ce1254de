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

/* What an advice does to pages, as bits: the check of a plan has a byte of them for each code. */
enum aero_deed { AERO_DESTROYS = 1, AERO_GIVES = 2, AERO_FREES_NOW = 4, AERO_FILLS_AGAIN = 8 };

/* What is known of a page once a plan was followed, as bits: the host owns it; it was given back
 * since the host got it, and not filled again; it was taken away at once at some time. */
enum aero_known { AERO_OWNED = 1, AERO_GIVEN = 2, AERO_WENT = 4 };

struct aero_surveyed {
    int64_t stray_page; /* -1 where there is none */
    int64_t destroyed_pages;
};

/* Pages of the replayed memory, and the request of each block. */
struct aero_blocks {
    const int64_t *page;
    const int64_t *pages;
    const int64_t *request;
    int64_t count;
};

struct aero_followed {
    int64_t wrong_page; /* the lowest that is destroyed while the guest owns it; -1: there is none */
    int64_t request;    /* the last one that was looked at, which destroys it */
    int64_t owed_pages; /* pages of blocks that were not given back in their request */
};

/* Steps from one PFN of a request to the next. */
struct aero_steps {
    int64_t all;
    int64_t rising; /* by one */
    int64_t falling;
};

/* The sum of lengths, and how many there are of 2**k to 2**(k + 1) - 1. */
struct aero_tally {
    int64_t total;
    int64_t powers[64];
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
int64_t aero_outside(const struct aero_requests *requests, uint32_t queues,
                     const struct aero_layout *layout);
int64_t aero_select_pages(const struct aero_requests *requests, uint32_t queues,
                          const struct aero_layout *layout, int64_t *page, int64_t *request);
int64_t aero_merge(const int64_t *start, const int64_t *pages, const int64_t *group, int64_t count,
                   int64_t *out_start, int64_t *out_pages, int64_t *out_group);
int64_t aero_merge_requests(const struct aero_requests *requests, uint32_t queues,
                            const struct aero_layout *layout, const int64_t *group, int64_t room,
                            int64_t *out_start, int64_t *out_pages, int64_t *out_group);
int64_t aero_sweep(const int64_t *first_start, const int64_t *first_pages, int64_t first_count,
                   const int64_t *second_start, const int64_t *second_pages, int64_t second_count,
                   int wanted, int64_t *out_start, int64_t *out_pages);
void aero_weave(const int64_t *first, int64_t first_count, const int64_t *second,
                int64_t second_count, int64_t *order);
void aero_survey(const struct aero_ops *ops, const uint8_t *deeds, const struct aero_layout *layout,
                 struct aero_surveyed *out);
void aero_follow(const struct aero_requests *requests, const struct aero_layout *layout,
                 const struct aero_ops *ops, const uint8_t *deeds, const struct aero_blocks *lent,
                 uint8_t *state, struct aero_followed *out);
void aero_count_steps(const struct aero_requests *requests, uint32_t queues,
                      struct aero_steps *out);
void aero_tally(const int64_t *lengths, int64_t count, struct aero_tally *out);
void aero_give_back(void);
void aero_wire_pfns(const struct aero_requests *requests, uint32_t queues, uint32_t *out);
/* cdef end */

static inline int64_t aero_run_length(int32_t pages)
{
    return pages < 0 ? -(int64_t)pages : pages;
}

/* Whether a request is of a queue in `queues`, a bit each. */
static inline int aero_is_wanted(const struct aero_requests *requests, int64_t i, uint32_t queues)
{
    return requests->queue[i] < 32 && queues >> requests->queue[i] & 1;
}

/* The PFNs [low, end) of a run, whichever way they go. */
struct aero_span {
    int64_t low, end;
};

static inline struct aero_span aero_run_span(const struct aero_requests *requests, int64_t run)
{
    int64_t length = aero_run_length(requests->pages[run]);
    int64_t low = (int64_t)requests->pfn[run] - (requests->pages[run] < 0 ? length - 1 : 0);

    return (struct aero_span){low, low + length};
}

/* The region that holds pfn, or the next one above it; `hint` is where the last one was found. */
int64_t aero_region_at(const struct aero_layout *layout, int64_t pfn, int64_t hint);

/* What of a span is guest memory, piece by piece: each in one region, as pages [low, end) of the
 * replayed memory. `region` is aero_region_at(span.low) at first. Returns 0 behind the last one. */
static inline int aero_next_piece(const struct aero_layout *layout, struct aero_span span,
                                  int64_t *region, struct aero_span *piece)
{
    for (; *region < layout->count && layout->start_pfn[*region] < span.end; ++*region) {
        int64_t start = layout->start_pfn[*region], end = layout->end_pfn[*region];
        int64_t low = span.low > start ? span.low : start;
        int64_t shift = layout->base_page[*region] - start;

        end = span.end < end ? span.end : end;
        if (low < end) {
            *piece = (struct aero_span){low + shift, end + shift};
            ++*region;
            return 1;
        }
    }
    return 0;
}

#endif
