/* What every strategy begins with: the runs of recorded requests, checked, and on guest memory. */
#include "plans.h"

#include <endian.h>
#include <malloc.h>

/* Runs that no request can hold: of no pages, at 2**52 or above, or falling below PFN 0. */
void aero_check_runs(const uint64_t *pfn, const int32_t *pages, int64_t count,
                     struct aero_impossible *found)
{
    *found = (struct aero_impossible){0};
    for (int64_t i = 0; i < count; i++) {
        found->empty += pages[i] == 0;
        found->beyond += pfn[i] >> (64 - AERO_PAGE_SHIFT) != 0;
        found->below += pages[i] < 0 && pfn[i] < (uint64_t)-(int64_t)pages[i] - 1;
    }
}

/* Pages that each request names: out[count]. */
void aero_request_pages(const struct aero_requests *requests, int64_t *out)
{
    for (int64_t i = 0; i < requests->count; i++) {
        int64_t total = 0;

        for (int64_t j = requests->run_offsets[i]; j < requests->run_offsets[i + 1]; j++)
            total += aero_run_length(requests->pages[j]);
        out[i] = total;
    }
}

/* Every PFN of signed runs, in order, to `out` unless it is NULL. Returns how many there are. */
int64_t aero_expand(const int64_t *pfn, const int64_t *pages, int64_t count, int64_t *out)
{
    int64_t total = 0;

    for (int64_t i = 0; i < count; i++)
        total += pages[i] < 0 ? -pages[i] : pages[i];
    for (int64_t i = 0; i < count && out; i++) {
        int64_t first = pfn[i], step = pages[i] < 0 ? -1 : 1, length = pages[i] * step;

        for (int64_t j = 0; j < length; j++)
            *out++ = first + j * step;
    }
    return total;
}

/* The region that holds pfn, or the next one above it; `hint` is where the last one was found. */
int64_t aero_region_at(const struct aero_layout *layout, int64_t pfn, int64_t hint)
{
    int64_t low = 0, high = layout->count;

    if (hint < layout->count && pfn < layout->end_pfn[hint] &&
        (hint == 0 || pfn >= layout->end_pfn[hint - 1]))
        return hint;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;

        if (pfn < layout->end_pfn[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Cut the runs of the queues in `queues` (a bit each) to guest memory, each piece in one region.
 * Returns how many pieces there are; those beyond `room` are only counted. */
int64_t aero_select_runs(const struct aero_requests *requests, uint32_t queues,
                         const struct aero_layout *layout, int64_t room, int64_t *page,
                         int64_t *pages, int64_t *request)
{
    int64_t found = 0, region = 0;

    for (int64_t i = 0; i < requests->count; i++) {
        if (!aero_is_wanted(requests, i, queues))
            continue;
        for (int64_t j = requests->run_offsets[i]; j < requests->run_offsets[i + 1]; j++) {
            struct aero_span span = aero_run_span(requests, j), piece;

            region = aero_region_at(layout, span.low, region);
            for (int64_t k = region; aero_next_piece(layout, span, &k, &piece); found++) {
                if (found >= room)
                    continue;
                page[found] = piece.low;
                pages[found] = piece.end - piece.low;
                request[found] = i;
            }
        }
    }
    return found;
}

/* Pages that the queues in `queues` name and that are no guest memory, repeats counted. */
int64_t aero_outside(const struct aero_requests *requests, uint32_t queues,
                     const struct aero_layout *layout)
{
    int64_t outside = 0, region = 0;

    for (int64_t i = 0; i < requests->count; i++) {
        if (!aero_is_wanted(requests, i, queues))
            continue;
        for (int64_t j = requests->run_offsets[i]; j < requests->run_offsets[i + 1]; j++) {
            struct aero_span span = aero_run_span(requests, j), piece;

            region = aero_region_at(layout, span.low, region);
            outside += span.end - span.low;
            for (int64_t k = region; aero_next_piece(layout, span, &k, &piece);)
                outside -= piece.end - piece.low;
        }
    }
    return outside;
}

/* Every page of the queues in `queues`, in wire order; what is no guest memory is left out. There
 * must be room for all that the requests name. */
int64_t aero_select_pages(const struct aero_requests *requests, uint32_t queues,
                          const struct aero_layout *layout, int64_t *page, int64_t *request)
{
    int64_t found = 0, region = 0;

    for (int64_t i = 0; i < requests->count; i++) {
        if (!aero_is_wanted(requests, i, queues))
            continue;
        for (int64_t j = requests->run_offsets[i]; j < requests->run_offsets[i + 1]; j++) {
            int64_t length = aero_run_length(requests->pages[j]), step = requests->pages[j] < 0 ? -1 : 1;
            int64_t pfn = (int64_t)requests->pfn[j];

            for (int64_t k = 0; k < length; k++, pfn += step) {
                region = aero_region_at(layout, pfn, region);
                if (region == layout->count || pfn < layout->start_pfn[region])
                    continue;
                page[found] = pfn - layout->start_pfn[region] + layout->base_page[region];
                request[found++] = i;
            }
        }
    }
    return found;
}

/* What a driver writes into PFN arrays: every PFN of the queues in `queues`, in wire order. One that
 * 32 bits cannot hold becomes the highest of them, which is no guest's memory either: a cast would
 * make low memory of it. */
void aero_wire_pfns(const struct aero_requests *requests, uint32_t queues, uint32_t *out)
{
    for (int64_t i = 0; i < requests->count; i++) {
        if (!aero_is_wanted(requests, i, queues))
            continue;
        for (int64_t j = requests->run_offsets[i]; j < requests->run_offsets[i + 1]; j++) {
            int64_t length = aero_run_length(requests->pages[j]), step = requests->pages[j] < 0 ? -1 : 1;
            int64_t pfn = (int64_t)requests->pfn[j];

            for (int64_t k = 0; k < length; k++, pfn += step)
                *out++ = htole32(pfn < UINT32_MAX ? (uint32_t)pfn : UINT32_MAX);
        }
    }
}

/* The allocator keeps what is freed below the largest mapping that it ever gave back (mallopt(3),
 * M_MMAP_THRESHOLD): columns of a plan stay with the process. Hand all of that to the system. */
void aero_give_back(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
