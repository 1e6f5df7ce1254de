/* Stage c: turning what requests say into host addresses. */
#include "stages.h"

#include "ring.h"

#include <errno.h>
#include <time.h>

enum { WORD_PAGES_MASK = AERO_PAGE_BYTES - 1, RANGE_HEADER_BYTES = 8 };

/* The piece of guest memory that holds gpa, by binary search; -1 in a hole. */
static int64_t find(const struct aero_map *map, uint64_t gpa)
{
    int64_t low = 0, high = map->count;

    while (low < high) {
        int64_t middle = low + (high - low) / 2;

        if (gpa < map->gpa[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low && gpa - map->gpa[low - 1] < map->length_bytes[low - 1] ? low - 1 : -1;
}

/* Split [gpa, gpa + length) at region ends. Work is bounded by the number of regions. */
static void translate_range(const struct aero_map *map, uint64_t gpa, uint64_t length_bytes,
                            struct aero_translation *out)
{
    out->entries++;
    if (length_bytes == 0 || length_bytes > UINT64_MAX - gpa) {
        out->rejected++;
        return;
    }
    while (length_bytes) {
        int64_t at = find(map, gpa);
        uint64_t into, piece;

        if (at < 0) {
            out->rejected++;
            return;
        }
        into = gpa - map->gpa[at];
        piece = map->length_bytes[at] - into;
        if (piece > length_bytes)
            piece = length_bytes;
        out->checksum += map->offset_bytes[at] + into + piece;
        out->pages += (int64_t)(piece >> AERO_PAGE_SHIFT);
        gpa += piece;
        length_bytes -= piece;
    }
}

static void translate_pfns(const uint8_t *at, const uint8_t *end, const struct aero_map *map,
                           struct aero_translation *out)
{
    for (; end - at >= 4; at += 4)
        translate_range(map, aero_load_le(at, 4) << AERO_PAGE_SHIFT, AERO_PAGE_BYTES, out);
    out->rejected += at != end;
}

/* The seed's words: pfn << 12 | pages, or pages 0 and the count in the next word. */
static void translate_words(const uint8_t *at, const uint8_t *end, const struct aero_map *map,
                            struct aero_translation *out)
{
    if (end - at < RANGE_HEADER_BYTES) {
        out->rejected++;
        return;
    }
    for (at += RANGE_HEADER_BYTES; end - at >= 8; at += 8) {
        uint64_t word = aero_load_le(at, 8), pages = word & WORD_PAGES_MASK;

        if (pages == 0 && end - at >= 16) {
            at += 8;
            pages = aero_load_le(at, 8);
        }
        if (pages > UINT64_MAX >> AERO_PAGE_SHIFT)
            pages = 0; /* refused below */
        translate_range(map, word & ~(uint64_t)WORD_PAGES_MASK, pages << AERO_PAGE_SHIFT, out);
    }
    out->rejected += at != end;
}

/* Ranges that are descriptors of the ring. What the device may not write to, or is not whole pages,
 * is no memory that the guest gives. */
static void translate_descriptors(const uint8_t *at, const uint8_t *end,
                                  const struct aero_map *map, struct aero_translation *out)
{
    for (; end - at >= AERO_DESCRIPTOR_BYTES; at += AERO_DESCRIPTOR_BYTES) {
        uint64_t gpa = aero_load_le(at, 8), length_bytes = aero_load_le(at + 8, 4);

        if (!(aero_load_le(at + 12, 2) & AERO_WRITE) || (gpa | length_bytes) % AERO_PAGE_BYTES)
            length_bytes = 0; /* refused below */
        translate_range(map, gpa, length_bytes, out);
    }
    out->rejected += at != end;
}

/* Decode one request and add to what was found; `form` is one of enum aero_wire. */
void aero_translate_request(const uint8_t *at, const uint8_t *end, uint8_t form,
                            const struct aero_map *map, struct aero_translation *out)
{
    if (form == AERO_PFNS)
        translate_pfns(at, end, map, out);
    else if (form == AERO_RANGE_WORDS)
        translate_words(at, end, map, out);
    else
        translate_descriptors(at, end, map, out);
}

/* Decode `count` requests; request i is wire[start[i], start[i + 1]). EINVAL for a bad form. */
int aero_translate(const uint8_t *wire, const uint64_t *start, const uint8_t *form, int64_t count,
                   const struct aero_map *map, struct aero_translation *out)
{
    int64_t wall, cpu;

    *out = (struct aero_translation){0};
    for (int64_t i = 0; i < count; i++)
        if (form[i] > AERO_SCATTERLIST)
            return EINVAL;
    cpu = aero_now_ns(CLOCK_THREAD_CPUTIME_ID);
    wall = aero_now_ns(CLOCK_MONOTONIC);
    for (int64_t i = 0; i < count; i++)
        aero_translate_request(wire + start[i], wire + start[i + 1], form[i], map, out);
    out->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    out->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return 0;
}
