/* Two ascending lists side by side: set operations on canonical runs (disjoint, never touching), and
 * the order of both together. */
#include "plans.h"

struct edges {
    const int64_t *start, *pages;
    int64_t count; /* of edges: two a run */
    int64_t at;
};

static inline int64_t next_of(const struct edges *edges)
{
    int64_t run = edges->at >> 1;

    if (edges->at == edges->count)
        return INT64_MAX;
    return edges->start[run] + (edges->at & 1 ? edges->pages[run] : 0);
}

/* Keep the stretches that lie in the first list (1), the second (2) or both (3), as bits of
 * `wanted` say: bit n for n. `out` has room for as many runs as both lists have. */
int64_t aero_sweep(const int64_t *first_start, const int64_t *first_pages, int64_t first_count,
                   const int64_t *second_start, const int64_t *second_pages, int64_t second_count,
                   int wanted, int64_t *out_start, int64_t *out_pages)
{
    struct edges first = {first_start, first_pages, 2 * first_count, 0};
    struct edges second = {second_start, second_pages, 2 * second_count, 0};
    int64_t before = 0, count = 0;
    int state = 0;

    while (first.at < first.count || second.at < second.count) {
        int64_t one = next_of(&first), two = next_of(&second);
        int64_t now = one < two ? one : two;

        if (wanted >> state & 1 && now > before) {
            if (count && out_start[count - 1] + out_pages[count - 1] == before)
                out_pages[count - 1] += now - before;
            else {
                out_start[count] = before;
                out_pages[count++] = now - before;
            }
        }
        if (one == now) {
            state ^= 1;
            first.at++;
        }
        if (two == now) {
            state ^= 2;
            second.at++;
        }
        before = now;
    }
    return count;
}

/* The order in which two ascending lists become one: places in both, laid end to end. Of equal
 * numbers, those of the first come first. */
void aero_weave(const int64_t *first, int64_t first_count, const int64_t *second,
                int64_t second_count, int64_t *order)
{
    int64_t i = 0, j = 0;

    while (i < first_count || j < second_count)
        if (j == second_count || (i < first_count && first[i] <= second[j]))
            *order++ = i++;
        else
            *order++ = first_count + j++;
}
