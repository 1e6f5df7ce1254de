/* Sorting and merging what requests name, as a device that waits does, or a driver of the range
 * protocol: pages are marked in a bitmap, which is then walked upwards. */
#define _GNU_SOURCE
#include "core.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORD_BITS = 64, PFN_BYTES = 4, ENTRY_BYTES = 16 };

/* A bit for each page, one for each word of those that is not zero, and one for each word of these:
 * a walk over a few marks in a large memory costs what the marks cost. */
struct bitmap {
    uint64_t *page, *word, *block;
    uint64_t blocks;
};

struct walk {
    uint64_t *first_page, *pages;
    int64_t begin, runs, capacity; /* begin: of the group that is walked now */
    bool full;
};

static uint64_t words_for(uint64_t bits)
{
    return (bits + WORD_BITS - 1) / WORD_BITS;
}

static int make_bitmap(struct bitmap *map, uint64_t memory_pages)
{
    uint64_t words = words_for(memory_pages), summary = words_for(words);

    map->blocks = words_for(summary);
    map->page = malloc(words * sizeof(uint64_t));
    map->word = malloc(summary * sizeof(uint64_t));
    map->block = malloc(map->blocks * sizeof(uint64_t));
    if (!map->page || !map->word || !map->block)
        return ENOMEM;
    /* A device has its bitmap from the start: touched here, before the clock is read. */
    memset(map->page, 0, words * sizeof(uint64_t));
    memset(map->word, 0, summary * sizeof(uint64_t));
    memset(map->block, 0, map->blocks * sizeof(uint64_t));
    return 0;
}

static void free_bitmap(struct bitmap *map)
{
    free(map->block);
    free(map->word);
    free(map->page);
}

static inline void mark_bits(struct bitmap *map, uint64_t word, uint64_t bits)
{
    if (map->page[word] == 0) {
        map->word[word / WORD_BITS] |= UINT64_C(1) << word % WORD_BITS;
        map->block[word / WORD_BITS / WORD_BITS] |= UINT64_C(1) << word / WORD_BITS % WORD_BITS;
    }
    map->page[word] |= bits;
}

/* Words that become zero stay marked above: a walk finds nothing in them. */
static void set_range(struct bitmap *map, uint64_t page, uint64_t end, bool marked)
{
    while (page < end) {
        uint64_t bit = page % WORD_BITS, count = end - page;
        uint64_t bits = ~UINT64_C(0);

        if (count > WORD_BITS - bit)
            count = WORD_BITS - bit;
        if (count < WORD_BITS)
            bits = ((UINT64_C(1) << count) - 1) << bit;
        if (marked)
            mark_bits(map, page / WORD_BITS, bits);
        else
            map->page[page / WORD_BITS] &= ~bits;
        page += count;
    }
}

static void emit(struct walk *walk, uint64_t page, uint64_t pages)
{
    int64_t last = walk->runs - 1;

    if (last >= walk->begin && walk->first_page[last] + walk->pages[last] == page) {
        walk->pages[last] += pages;
        return;
    }
    if (walk->runs == walk->capacity) {
        walk->full = true;
        return;
    }
    walk->first_page[walk->runs] = page;
    walk->pages[walk->runs++] = pages;
}

static void emit_word(struct walk *walk, uint64_t first, uint64_t bits)
{
    while (bits) {
        uint64_t skip = (uint64_t)__builtin_ctzll(bits);
        uint64_t rest = ~(bits >> skip);
        uint64_t count = rest ? (uint64_t)__builtin_ctzll(rest) : WORD_BITS;

        emit(walk, first + skip, count);
        if (skip + count >= WORD_BITS)
            return;
        bits &= ~UINT64_C(0) << (skip + count);
    }
}

/* Write out all runs, ascending, and leave the bitmap empty. */
static void walk_bitmap(struct bitmap *map, struct walk *walk)
{
    walk->begin = walk->runs;
    for (uint64_t b = 0; b < map->blocks; b++)
        for (; map->block[b]; map->block[b] &= map->block[b] - 1) {
            uint64_t s = b * WORD_BITS + (uint64_t)__builtin_ctzll(map->block[b]);

            for (; map->word[s]; map->word[s] &= map->word[s] - 1) {
                uint64_t w = s * WORD_BITS + (uint64_t)__builtin_ctzll(map->word[s]);

                emit_word(walk, w * WORD_BITS, map->page[w]);
                map->page[w] = 0;
            }
        }
}

/* The piece of guest memory that holds gpa; -1 in a hole. The last one found is tried first. */
static inline int64_t find(const struct aero_map *map, uint64_t gpa, int64_t last)
{
    int64_t low = 0, high = map->count;

    if (last >= 0 && gpa - map->gpa[last] < map->length_bytes[last])
        return last;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;

        if (gpa < map->gpa[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low && gpa - map->gpa[low - 1] < map->length_bytes[low - 1] ? low - 1 : -1;
}

/* Neighbours, rising or falling, are marked together: Linux sends mostly those. */
static void set_pfns(const uint8_t *at, const uint8_t *end, const struct aero_map *map,
                     struct bitmap *bitmap, bool marked, struct aero_gathering *out)
{
    uint64_t first = 0, past = 0; /* marked when a page is no neighbour of theirs */
    int64_t region = -1;

    for (; end - at >= PFN_BYTES; at += PFN_BYTES) {
        uint32_t pfn;
        uint64_t gpa, page;

        memcpy(&pfn, at, sizeof(pfn));
        gpa = (uint64_t)le32toh(pfn) << AERO_PAGE_SHIFT;
        region = find(map, gpa, region);
        if (region < 0) {
            out->rejected++;
            continue;
        }
        page = (map->offset_bytes[region] + gpa - map->gpa[region]) >> AERO_PAGE_SHIFT;
        if (page == past && past > first) {
            past++;
        } else if (page + 1 == first && past > first) {
            first--;
        } else {
            set_range(bitmap, first, past, marked);
            first = page;
            past = page + 1;
        }
    }
    set_range(bitmap, first, past, marked);
    out->rejected += at != end;
}

/* Descriptors of the split ring: le64 address, le32 length, flags, next. One that is not whole pages
 * of one region is rejected, as virtio_balloon_handle_report does (hw/virtio/virtio-balloon.c, QEMU
 * 5.1 and later). */
static void set_entries(const uint8_t *at, const uint8_t *end, const struct aero_map *map,
                        struct bitmap *bitmap, bool marked, struct aero_gathering *out)
{
    for (; end - at >= ENTRY_BYTES; at += ENTRY_BYTES) {
        uint64_t gpa, length, page;
        uint32_t length_le;
        int64_t region;

        memcpy(&gpa, at, sizeof(gpa));
        memcpy(&length_le, at + sizeof(gpa), sizeof(length_le));
        gpa = le64toh(gpa);
        length = le32toh(length_le);
        region = find(map, gpa, -1);
        if (region < 0 || length > map->length_bytes[region] - (gpa - map->gpa[region]) ||
            (gpa | length) % AERO_PAGE_BYTES) {
            out->rejected++;
            continue;
        }
        page = (map->offset_bytes[region] + gpa - map->gpa[region]) >> AERO_PAGE_SHIFT;
        set_range(bitmap, page, page + (length >> AERO_PAGE_SHIFT), marked);
    }
    out->rejected += at != end;
}

/* 0 where every region lies in a memory of this many pages, so that no mark falls outside. */
static int check_map(const struct aero_map *map, uint64_t memory_pages)
{
    for (int64_t i = 0; i < map->count; i++)
        if (map->offset_bytes[i] >> AERO_PAGE_SHIFT > memory_pages ||
            map->length_bytes[i] >> AERO_PAGE_SHIFT >
                memory_pages - (map->offset_bytes[i] >> AERO_PAGE_SHIFT) ||
            (map->gpa[i] | map->length_bytes[i] | map->offset_bytes[i]) % AERO_PAGE_BYTES)
            return EINVAL;
    return 0;
}

/* Merge what requests name within each group. Runs go to first_page and pages, both of `capacity`
 * elements: E2BIG where they do not suffice. EINVAL for a bad form or map; then nothing was done. */
int aero_gather(const struct aero_content *content, const struct aero_wanted *wanted,
                const struct aero_map *map, uint64_t memory_pages, const struct aero_runs *runs,
                struct aero_gathering *out)
{
    const int64_t *order = wanted->order, *group = wanted->group;
    struct walk walk = {runs->first_page, runs->pages, 0, 0, runs->capacity, false};
    struct bitmap bitmap = {0};
    int error = check_map(map, memory_pages);
    int64_t wall, cpu;

    *out = (struct aero_gathering){0};
    for (int64_t i = 0; i < wanted->count && !error; i++)
        if (order[i] < 0 || order[i] >= content->count || content->form[order[i]] == AERO_RANGE_WORDS)
            error = EINVAL;
    if (!error)
        error = make_bitmap(&bitmap, memory_pages);
    if (error) {
        free_bitmap(&bitmap);
        return error;
    }
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    wall = aero_now_ns(CLOCK_MONOTONIC);
    for (int64_t i = 0; i < wanted->count; i++) {
        const uint8_t *at = content->wire + content->start[order[i]];
        const uint8_t *end = content->wire + content->start[order[i] + 1];

        if (content->form[order[i]] == AERO_PFNS)
            set_pfns(at, end, map, &bitmap, !wanted->taken_out[i], out);
        else
            set_entries(at, end, map, &bitmap, !wanted->taken_out[i], out);
        if (i + 1 == wanted->count || group[i + 1] != group[i])
            walk_bitmap(&bitmap, &walk);
        runs->ended[i] = walk.runs;
    }
    out->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    out->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    out->runs = walk.runs;
    free_bitmap(&bitmap);
    return walk.full ? E2BIG : 0;
}
