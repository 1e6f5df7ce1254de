/* What each operation of a plan will find, without touching memory: the state that decides its cost. */
#include "core.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

enum { UNIT_PAGES = 512 };

/* A unit gets a page table with its first small page, and keeps it when its pages go one by one. */
static void add_table(uint8_t *state, uint64_t page, uint64_t size_pages)
{
    uint64_t first = page - page % UNIT_PAGES;

    for (page = first; page < first + UNIT_PAGES && page < size_pages; page++)
        if (state[page] == AERO_FOUND_NOTHING)
            state[page] = AERO_FOUND_EMPTIED;
}

static void split_unit(uint8_t *state, uint64_t page, uint64_t size_pages)
{
    uint64_t first = page - page % UNIT_PAGES;

    for (page = first; page < first + UNIT_PAGES && page < size_pages; page++)
        if (state[page] == AERO_FOUND_HUGE)
            state[page] = AERO_FOUND_SPLIT;
}

static void pass_page(uint8_t *state, uint8_t effect, struct aero_found *found)
{
    bool is_again = *state == AERO_FOUND_LAZY && effect == AERO_FREES_LATER;
    bool is_there = *state != AERO_FOUND_NOTHING && *state != AERO_FOUND_EMPTIED;

    found->small_pages += *state == AERO_FOUND_SMALL || (*state == AERO_FOUND_LAZY && !is_again);
    found->lazy_pages += is_again;
    found->split_pages += *state == AERO_FOUND_SPLIT;
    found->huge_pages += *state == AERO_FOUND_HUGE;
    found->emptied_pages += *state == AERO_FOUND_EMPTIED;
    if (effect == AERO_FREES) {
        found->freed_pages += is_there;
        if (is_there)
            *state = AERO_FOUND_EMPTIED;
    } else if (effect == AERO_FREES_LATER && is_there) {
        *state = AERO_FOUND_LAZY;
    } else if (effect == AERO_FILLS && (!is_there || *state == AERO_FOUND_LAZY)) {
        found->taken_pages += !is_there;
        *state = AERO_FOUND_SMALL;
    }
}

/* A unit of memory that comes in huge pages alone (hugetlb): none is split, and none comes in part. */
static void pass_whole(uint8_t *state, uint8_t effect, struct aero_found *found)
{
    if (*state == AERO_FOUND_HUGE)
        found->huge_pages += UNIT_PAGES;
    if (effect == AERO_FREES)
        memset(state, AERO_FOUND_NOTHING, UNIT_PAGES);
    else if (effect == AERO_FILLS)
        memset(state, AERO_FOUND_HUGE, UNIT_PAGES);
}

/* Pages [page, end) of one unit of 2 MiB. All of a huge page's pages are HUGE, or none is. */
static void pass_unit(uint8_t *state, uint64_t page, uint64_t end, uint64_t size_pages,
                      uint8_t effect, struct aero_found *found)
{
    bool takes = effect == AERO_FREES || effect == AERO_FREES_LATER;
    bool is_bare = state[page] == AERO_FOUND_NOTHING; /* and then all of the unit */

    if (state[page] == AERO_FOUND_HUGE && end - page == UNIT_PAGES) {
        found->huge_pages += UNIT_PAGES;
        if (effect == AERO_FREES)
            memset(state + page, AERO_FOUND_NOTHING, UNIT_PAGES);
        return;
    }
    if (state[page] == AERO_FOUND_HUGE && takes) {
        split_unit(state, page, size_pages);
        found->splits++;
    }
    for (uint64_t at = page; at < end; at++)
        pass_page(state + at, effect, found);
    if (effect == AERO_FILLS && is_bare)
        add_table(state, page, size_pages);
    /* A table that a call empties by itself goes too (mm/pt_reclaim.c, since Linux 6.14). */
    if (effect == AERO_FREES && end - page == UNIT_PAGES)
        memset(state + page, AERO_FOUND_NOTHING, UNIT_PAGES);
}

/* Fill `found[i]` for every operation, and change `state` (one aero_found_page a byte) to what the
 * plan leaves. EINVAL where the executor would refuse the plan. With `huge_only` memory is whole
 * pages of 2 MiB. */
int aero_foresee(const struct aero_memory *memory, const struct aero_ops *ops,
                 const struct aero_rules *rules, int huge_only, uint8_t *state,
                 struct aero_found *found)
{
    uint64_t size_pages = memory->size_bytes >> AERO_PAGE_SHIFT;

    if (aero_check(memory, ops, rules, 256) >= 0)
        return EINVAL;
    for (int64_t i = 0; i < ops->count; i++) {
        uint64_t page = ops->offset_bytes[i] >> AERO_PAGE_SHIFT;
        uint64_t end = page + (ops->length_bytes[i] >> AERO_PAGE_SHIFT);

        found[i] = (struct aero_found){0};
        while (page < end) {
            uint64_t border = page - page % UNIT_PAGES + UNIT_PAGES;
            uint64_t until = border < end ? border : end;

            if (huge_only)
                pass_whole(state + border - UNIT_PAGES, rules->effect[ops->advice[i]], &found[i]);
            else
                pass_unit(state, page, until, size_pages, rules->effect[ops->advice[i]], &found[i]);
            page = until;
        }
    }
    return 0;
}
