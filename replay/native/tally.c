/* Counts for `whatif`: of operations by length, of requests by how their PFNs follow. */
#include "plans.h"

/* Steps within each request of the queues in `queues`. */
void aero_count_steps(const struct aero_requests *requests, uint32_t queues,
                      struct aero_steps *out)
{
    *out = (struct aero_steps){0};
    for (int64_t i = 0; i < requests->count; i++) {
        int64_t first = requests->run_offsets[i], before = 0;

        if (!aero_is_wanted(requests, i, queues))
            continue;
        for (int64_t j = first; j < requests->run_offsets[i + 1]; j++) {
            int64_t pfn = (int64_t)requests->pfn[j], pages = requests->pages[j];
            int64_t inner = aero_run_length(requests->pages[j]) - 1;

            if (j > first) {
                out->all++;
                out->rising += pfn == before + 1;
                out->falling += pfn == before - 1;
            }
            out->all += inner;
            *(pages < 0 ? &out->falling : &out->rising) += inner;
            before = pages < 0 ? pfn - inner : pfn + inner;
        }
    }
}

/* Lengths of 0 count as nothing. */
void aero_tally(const int64_t *lengths, int64_t count, struct aero_tally *out)
{
    *out = (struct aero_tally){0};
    for (int64_t i = 0; i < count; i++) {
        out->total += lengths[i];
        if (lengths[i])
            out->powers[63 - __builtin_clzll((uint64_t)lengths[i])]++;
    }
}
