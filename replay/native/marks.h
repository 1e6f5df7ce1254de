/* Pages marked in a bitmap that reaches over all of guest memory, with levels above it by which the
 * marks are found again. */
#ifndef AEROSTAT_MARKS_H
#define AEROSTAT_MARKS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum {
    WORD_SHIFT = 6, /* 64 pages a word, 64 words a word of the level above */
    LEVELS = 4,
    BLOCK = 8,   /* pages that are looked at together */
    AHEAD = 512, /* where to fetch from while one is marked: caches guess no further than 4 KiB */
};

static const uint64_t SPAN = UINT64_C(1) << 29; /* 2 TiB of guest memory */

/* Of SPAN pages; the system gives memory only to what is marked. */
struct bitmap {
    uint64_t *level[LEVELS]; /* of the pages themselves, and of the words below that are not 0 */
};

static bool make_room(struct bitmap *map)
{
    for (int i = 0; i < LEVELS; i++) {
        if (!map->level[i])
            map->level[i] = calloc(SPAN >> (i + 1) * WORD_SHIFT, sizeof(uint64_t));
        if (!map->level[i])
            return false;
    }
    return true;
}

static void free_bitmap(struct bitmap *map)
{
    for (int i = 0; i < LEVELS; i++)
        free(map->level[i]);
}

/* Tell the levels above of a word that was 0: rare, so kept out of the loops. */
static __attribute__((noinline)) void mark_above(struct bitmap *map, uint64_t word)
{
    for (int i = 1; i < LEVELS; i++) {
        uint64_t bit = UINT64_C(1) << (word & 63), before;

        word >>= WORD_SHIFT;
        before = map->level[i][word];
        map->level[i][word] = before | bit;
        if (before)
            return; /* the levels above know */
    }
}

static inline void mark_word(struct bitmap *map, uint64_t word, uint64_t bits)
{
    uint64_t before = map->level[0][word];

    map->level[0][word] = before | bits;
    if (__builtin_expect(before == 0, 0))
        mark_above(map, word);
}

static inline void mark(struct bitmap *map, uint64_t first, uint64_t pages)
{
    uint64_t last = first + pages - 1, word = first >> WORD_SHIFT;
    uint64_t bits = ~UINT64_C(0) << (first & 63);

    for (; word < last >> WORD_SHIFT; word++, bits = ~UINT64_C(0))
        mark_word(map, word, bits);
    mark_word(map, word, bits & ~UINT64_C(0) >> (63 - (last & 63)));
}

typedef uint64_t two __attribute__((vector_size(16), aligned(8), may_alias));

/* Whether BLOCK pages rise or fall by one. A look at both ends tells most of those that do not; then
 * the last step needs no look of its own. */
static inline bool is_line(const int64_t *page)
{
    uint64_t across = (uint64_t)page[BLOCK - 1] - (uint64_t)page[0];
    uint64_t step = across == BLOCK - 1 ? 1 : -1;
    two steps = {step, step}, other = {0, 0};

    if (across != step * (BLOCK - 1))
        return false;
    for (int i = 0; i + 2 < BLOCK; i += 2)
        other |= *(const two *)(page + i + 1) - *(const two *)(page + i) - steps;
    return !(other[0] | other[1]);
}

static inline void mark_page(struct bitmap *map, uint64_t page)
{
    mark_word(map, page >> WORD_SHIFT, UINT64_C(1) << (page & 63));
}

/* Mark single pages. Stops at one outside SPAN. */
static bool mark_pages(struct bitmap *map, const int64_t *page, int64_t count)
{
    for (int64_t i = 0, end; i < count; i = end) {
        end = i + BLOCK < count ? i + BLOCK : count;
        if (end - i == BLOCK && is_line(page + i)) {
            int64_t low = page[i] < page[end - 1] ? page[i] : page[end - 1];

            if ((uint64_t)low <= SPAN - BLOCK) {
                mark(map, low, BLOCK);
                continue;
            }
        }
        __builtin_prefetch(page + (i + AHEAD < count ? i + AHEAD : i));
        for (int64_t j = i; j < end; j++) {
            if ((uint64_t)page[j] >= SPAN)
                return false;
            mark_page(map, page[j]);
        }
    }
    return true;
}

/* Mark runs of `most` pages together; those of no pages are skipped. Stops where they have more, or
 * at one outside SPAN; then it is not said which are marked. */
static bool mark_runs(struct bitmap *map, const int64_t *start, const int64_t *pages, int64_t count,
                      uint64_t most)
{
    uint64_t total = 0, word = 0, bits = 0;

    for (int64_t i = 0; i < count; i++) {
        uint64_t first = start[i], length = pages[i];

        if (pages[i] <= 0)
            continue;
        total += length;
        if (length > SPAN || first > SPAN - length || total > most)
            return false;
        if (length > 1) {
            mark(map, first, length);
            continue;
        }
        /* Neighbours are put together first: the processor waits for what it has just stored. */
        if (first >> WORD_SHIFT != word) {
            if (bits)
                mark_word(map, word, bits);
            word = first >> WORD_SHIFT;
            bits = 0;
        }
        bits |= UINT64_C(1) << (first & 63);
    }
    if (bits)
        mark_word(map, word, bits);
    return true;
}

#endif
