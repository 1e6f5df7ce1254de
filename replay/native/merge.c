/* Sorting and merging runs of pages, group by group. Pages are marked in a bitmap rather than
 * compared: that takes a few ns a page in whatever order they come. */
#include "plans.h"

#include "marks.h"

#include <errno.h>
#include <stdlib.h>

enum {
    FEW = 32,          /* so few runs are sorted */
    PART = 4096,       /* runs of a large group that are looked at together */
    DENSE_PAGES = 512, /* a run this long takes ten words to mark: a sort would take as long */
};

struct runs {
    const int64_t *start;
    const int64_t *pages; /* NULL: one each */
};

struct sink {
    int64_t *start, *pages, *group;
    int64_t count;
    int64_t room;
    int64_t of; /* the group that is merged now */
    int64_t begin, end; /* the run that may still grow; empty at first */
};

static inline int64_t pages_of(const struct runs *runs, int64_t i)
{
    return runs->pages ? runs->pages[i] : 1;
}

static inline void put(struct sink *sink)
{
    if (sink->end == sink->begin)
        return;
    if (sink->count < sink->room) {
        sink->start[sink->count] = sink->begin;
        sink->pages[sink->count] = sink->end - sink->begin;
        if (sink->group)
            sink->group[sink->count] = sink->of;
    }
    sink->count++;
}

/* Runs come in order of their start. */
static inline void add(struct sink *sink, int64_t start, int64_t pages)
{
    if (pages <= 0)
        return;
    if (sink->end > sink->begin && start <= sink->end) {
        if (start + pages > sink->end)
            sink->end = start + pages;
        return;
    }
    put(sink);
    sink->begin = start;
    sink->end = start + pages;
}

static inline void take_word(struct sink *sink, uint64_t bits, int64_t base)
{
    while (bits) {
        int skipped = __builtin_ctzll(bits);
        uint64_t gone = bits >> skipped;
        int pages = ~gone ? __builtin_ctzll(~gone) : 64;

        add(sink, base + skipped, pages);
        if (skipped + pages >= 64)
            return;
        bits &= ~UINT64_C(0) << (skipped + pages);
    }
}

/* Hands out the pages that are marked below a word, and leaves nothing marked. */
static void take(struct bitmap *map, int level, uint64_t word, struct sink *sink)
{
    uint64_t bits = map->level[level][word];

    map->level[level][word] = 0;
    for (; bits; bits &= bits - 1) {
        uint64_t below = word << WORD_SHIFT | __builtin_ctzll(bits);

        if (level > 1) {
            take(map, level - 1, below, sink);
            continue;
        }
        if (sink)
            take_word(sink, map->level[0][below], (int64_t)(below << WORD_SHIFT));
        map->level[0][below] = 0;
    }
}

static void take_all(struct bitmap *map, struct sink *sink)
{
    for (uint64_t word = 0; word < SPAN >> LEVELS * WORD_SHIFT; word++)
        take(map, LEVELS - 1, word, sink);
}

/* Mark runs of `most` pages together; false, and nothing is marked, where they have more. */
static bool mark_group(const struct runs *runs, int64_t first, int64_t end, uint64_t most,
                       struct bitmap *map)
{
    bool fits = runs->pages
                    ? mark_runs(map, runs->start + first, runs->pages + first, end - first, most)
                    : mark_pages(map, runs->start + first, end - first);

    if (!fits)
        take_all(map, NULL);
    return fits;
}

struct pair {
    int64_t start, pages;
};

static int by_start(const void *a, const void *b)
{
    const struct pair *first = a, *second = b;

    return (first->start > second->start) - (first->start < second->start);
}

static int sort_group(const struct runs *runs, int64_t first, int64_t end, struct sink *sink)
{
    struct pair few[FEW], *pairs = few;
    bool rises = true;

    for (int64_t i = first + 1; i < end; i++)
        rises &= runs->start[i] >= runs->start[i - 1];
    if (rises) {
        for (int64_t i = first; i < end; i++)
            add(sink, runs->start[i], pages_of(runs, i));
        return 0;
    }
    if (end - first > FEW && !(pairs = malloc((end - first) * sizeof(*pairs))))
        return ENOMEM;
    for (int64_t i = first; i < end; i++)
        pairs[i - first] = (struct pair){runs->start[i], pages_of(runs, i)};
    qsort(pairs, end - first, sizeof(*pairs), by_start);
    for (int64_t i = 0; i < end - first; i++)
        add(sink, pairs[i].start, pairs[i].pages);
    if (pairs != few)
        free(pairs);
    return 0;
}

static int merge_group(const struct runs *runs, int64_t first, int64_t end, struct bitmap *map,
                       struct sink *sink)
{
    if (end - first <= FEW)
        return sort_group(runs, first, end, sink);
    if (!make_room(map))
        return ENOMEM;
    if (!mark_group(runs, first, end, (uint64_t)(end - first) * DENSE_PAGES, map))
        return sort_group(runs, first, end, sink);
    take_all(map, sink);
    return 0;
}

/* Sort and merge the runs of each group; groups are what lies next to each other with one number.
 * Returns how many runs there are, or less than 0: minus an errno. */
int64_t aero_merge(const int64_t *start, const int64_t *pages, const int64_t *group, int64_t count,
                   int64_t *out_start, int64_t *out_pages, int64_t *out_group)
{
    struct runs runs = {start, pages};
    struct sink sink = {out_start, out_pages, out_group, 0, count, 0, 0, 0};
    struct bitmap map = {0};
    int error = 0;

    for (int64_t first = 0, end; first < count && !error; first = end) {
        end = group ? first + 1 : count;
        while (end < count && group[end] == group[first])
            end++;
        sink.of = group ? group[first] : 0;
        error = merge_group(&runs, first, end, &map, &sink);
        put(&sink);
        sink.begin = sink.end = 0;
    }
    free_bitmap(&map);
    return error ? -error : sink.count;
}

/* Pieces of one group on guest memory, a part of them at a time. */
struct part {
    int64_t start[PART], pages[PART];
    int64_t count;
    bool marked; /* an earlier part of the group is in the bitmap */
};

static int mark_part(struct part *part, struct bitmap *map)
{
    struct runs runs = {part->start, part->pages};

    if (!make_room(map))
        return ENOMEM;
    if (!mark_group(&runs, 0, part->count, UINT64_MAX, map))
        return EINVAL; /* no layout reaches so far */
    part->count = 0;
    part->marked = true;
    return 0;
}

static int end_group(struct part *part, struct bitmap *map, struct sink *sink)
{
    struct runs runs = {part->start, part->pages};
    int error;

    if (!part->marked) {
        error = merge_group(&runs, 0, part->count, map, sink);
    } else {
        error = mark_part(part, map);
        if (!error)
            take_all(map, sink);
    }
    put(sink);
    sink->begin = sink->end = 0;
    part->count = 0;
    part->marked = false;
    return error;
}

static int add_request(const struct aero_requests *requests, int64_t i,
                       const struct aero_layout *layout, struct part *part, struct bitmap *map)
{
    int64_t region = 0;

    for (int64_t j = requests->run_offsets[i]; j < requests->run_offsets[i + 1]; j++) {
        struct aero_span span = aero_run_span(requests, j), piece;

        region = aero_region_at(layout, span.low, region);
        for (int64_t k = region; aero_next_piece(layout, span, &k, &piece);) {
            int error = part->count == PART ? mark_part(part, map) : 0;

            if (error)
                return error;
            part->start[part->count] = piece.low;
            part->pages[part->count++] = piece.end - piece.low;
        }
    }
    return 0;
}

/* The same for what the queues in `queues` name on guest memory, by the group of each request: equal
 * neighbours among those that name something. Runs beyond `room` are only counted. */
int64_t aero_merge_requests(const struct aero_requests *requests, uint32_t queues,
                            const struct aero_layout *layout, const int64_t *group, int64_t room,
                            int64_t *out_start, int64_t *out_pages, int64_t *out_group)
{
    struct sink sink = {out_start, out_pages, out_group, 0, room, 0, 0, 0};
    struct part *part = calloc(1, sizeof(*part));
    struct bitmap map = {0};
    int error = part ? 0 : ENOMEM;

    for (int64_t i = 0; i < requests->count && !error; i++) {
        if (!aero_is_wanted(requests, i, queues) ||
            requests->run_offsets[i] == requests->run_offsets[i + 1])
            continue;
        if (group[i] != sink.of)
            error = end_group(part, &map, &sink);
        sink.of = group[i];
        if (!error)
            error = add_request(requests, i, layout, part, &map);
    }
    if (!error)
        error = end_group(part, &map, &sink);
    free_bitmap(&map);
    free(part);
    return error ? -error : sink.count;
}
