/* What a guest pays that uses memory again after it got it back. */
#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <time.h>

/* Write to every page of the runs, in their order: EINVAL when one lies outside the mapping, and then
 * to none. The byte is a zero in the middle of the page, so that a page that was discarded still reads
 * as zero afterwards and a page that was not keeps its stamps, which stand at its ends. */
int aero_touch(const struct aero_memory *memory, const uint64_t *first_page, const uint64_t *pages,
               int64_t count, struct aero_touch *out)
{
    uint64_t size_pages = memory->size_bytes >> AERO_PAGE_SHIFT;
    int64_t faults, cpu, wall;

    *out = (struct aero_touch){0};
    for (int64_t i = 0; i < count; i++) {
        if (first_page[i] > size_pages || pages[i] > size_pages - first_page[i])
            return EINVAL;
        out->pages += pages[i];
    }
    faults = aero_minor_faults();
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    wall = aero_now_ns(CLOCK_MONOTONIC);
    for (int64_t i = 0; i < count; i++) {
        volatile uint8_t *page = memory->base + (first_page[i] << AERO_PAGE_SHIFT);

        for (uint64_t left = pages[i]; left; left--, page += AERO_PAGE_BYTES)
            page[AERO_PAGE_BYTES / 2] = 0;
    }
    out->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    out->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    out->minor_faults = aero_minor_faults() - faults;
    return 0;
}
