/* Who owns each page when, request by request, and what a plan does with it meanwhile. One byte a
 * page of memory, however long the plan is. */
#include "plans.h"

#include "exchange.h"

enum {
    OWNED = AERO_OWNED,
    GIVEN = AERO_GIVEN,
    GONE = AERO_WENT,
    LENT = 8,  /* by the request that is looked at */
    OWED = 16, /* lent, and not given back yet */
};

/* The page behind a region's last one in the replayed memory. */
static inline int64_t slot_end(const struct aero_layout *layout, int64_t region)
{
    return layout->base_page[region] + layout->end_pfn[region] - layout->start_pfn[region];
}

/* The region whose slot of the replayed memory holds page, or the next one above it. */
static int64_t slot_at(const struct aero_layout *layout, int64_t page, int64_t hint)
{
    int64_t low = 0, high = layout->count;

    if (hint < layout->count && page < slot_end(layout, hint) &&
        (hint == 0 || page >= slot_end(layout, hint - 1)))
        return hint;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;

        if (page < slot_end(layout, middle))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The lowest page that operations touch in no region, and the pages that they destroy. */
void aero_survey(const struct aero_ops *ops, const uint8_t *deeds, const struct aero_layout *layout,
                 struct aero_surveyed *out)
{
    *out = (struct aero_surveyed){-1, 0};
    for (int64_t i = 0, region = 0; i < ops->count; i++) {
        int64_t page = ops->offset_bytes[i] >> AERO_PAGE_SHIFT, stray = -1;
        int64_t end = page + (int64_t)(ops->length_bytes[i] >> AERO_PAGE_SHIFT);

        region = slot_at(layout, page, region);
        if (region == layout->count || page < layout->base_page[region])
            stray = page;
        else if (end > slot_end(layout, region))
            stray = slot_end(layout, region);
        if (stray >= 0 && (out->stray_page < 0 || stray < out->stray_page))
            out->stray_page = stray;
        if (deeds[ops->advice[i]] & AERO_DESTROYS &&
            __builtin_add_overflow(out->destroyed_pages, end - page, &out->destroyed_pages))
            out->destroyed_pages = INT64_MAX;
    }
}

static void change_hands(uint8_t *state, int64_t page, int64_t end, int to_host)
{
    for (; page < end; page++)
        if (!to_host)
            state[page] &= ~OWNED;
        else if (!(state[page] & OWNED))
            state[page] = (state[page] | OWNED) & ~GIVEN;
}

static void take_request(const struct aero_requests *requests, int64_t i,
                         const struct aero_layout *layout, uint8_t *state)
{
    for (int64_t j = requests->run_offsets[i], region = 0; j < requests->run_offsets[i + 1]; j++) {
        struct aero_span span = aero_run_span(requests, j), piece;

        region = aero_region_at(layout, span.low, region);
        for (int64_t k = region; aero_next_piece(layout, span, &k, &piece);)
            change_hands(state, piece.low, piece.end, requests->queue[i] == AERO_INFLATE);
    }
}

/* Returns the lowest page that it destroys and the guest owns, or `wrong` where that is lower. */
static int64_t carry_out(const struct aero_ops *ops, int64_t i, uint8_t deed, uint8_t *state,
                         int64_t wrong)
{
    int64_t page = ops->offset_bytes[i] >> AERO_PAGE_SHIFT;
    int64_t end = page + (int64_t)(ops->length_bytes[i] >> AERO_PAGE_SHIFT);

    for (; deed && page < end; page++) {
        if (deed & AERO_DESTROYS && !(state[page] & (OWNED | LENT)) && (wrong < 0 || page < wrong))
            wrong = page;
        if (deed & AERO_GIVES)
            state[page] = (state[page] | GIVEN) & ~OWED;
        if (deed & AERO_FREES_NOW)
            state[page] |= GONE;
        if (deed & AERO_FILLS_AGAIN)
            state[page] &= ~GIVEN;
    }
    return wrong;
}

/* Go through requests and operations side by side. `lent` are blocks that the guest lends for the
 * time of one request, in order of the requests; operations too, and each touches one region only
 * (aero_survey). `state` is one byte a page, 0 at first. Stops behind the first request with a page
 * that is destroyed while the guest owns it. */
void aero_follow(const struct aero_requests *requests, const struct aero_layout *layout,
                 const struct aero_ops *ops, const uint8_t *deeds, const struct aero_blocks *lent,
                 uint8_t *state, struct aero_followed *out)
{
    int64_t op = 0, block = 0;

    *out = (struct aero_followed){-1, 0, 0};
    for (int64_t i = 0; i < requests->count && out->wrong_page < 0; i++) {
        int64_t first = block;

        if (requests->queue[i] == AERO_INFLATE || requests->queue[i] == AERO_DEFLATE)
            take_request(requests, i, layout, state);
        for (; block < lent->count && lent->request[block] <= i; block++)
            for (int64_t j = 0; j < lent->pages[block]; j++)
                state[lent->page[block] + j] |= LENT | OWED;
        for (; op < ops->count && ops->request[op] <= i; op++)
            out->wrong_page = carry_out(ops, op, deeds[ops->advice[op]], state, out->wrong_page);
        for (; first < block; first++)
            for (int64_t j = 0; j < lent->pages[first]; j++) {
                out->owed_pages += state[lent->page[first] + j] & OWED ? 1 : 0;
                state[lent->page[first] + j] &= ~(LENT | OWED);
            }
        out->request = i;
    }
}
