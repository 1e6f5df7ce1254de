/* Stages b and c: handing requests over, and turning what they say into host addresses. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { WORD_PAGES_MASK = AERO_PAGE_BYTES - 1, RANGE_HEADER_BYTES = 8 };

/* The wire is little-endian whatever this machine is. */
static uint64_t load_le(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

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
        translate_range(map, load_le(at, 4) << AERO_PAGE_SHIFT, AERO_PAGE_BYTES, out);
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
        uint64_t word = load_le(at, 8), pages = word & WORD_PAGES_MASK;

        if (pages == 0 && end - at >= 16) {
            at += 8;
            pages = load_le(at, 8);
        }
        if (pages > UINT64_MAX >> AERO_PAGE_SHIFT)
            pages = 0; /* refused below */
        translate_range(map, word & ~(uint64_t)WORD_PAGES_MASK, pages << AERO_PAGE_SHIFT, out);
    }
    out->rejected += at != end;
}

/* Entries of le64 gpa and le64 length in bytes. */
static void translate_entries(const uint8_t *at, const uint8_t *end, const struct aero_map *map,
                              struct aero_translation *out)
{
    for (; end - at >= 16; at += 16)
        translate_range(map, load_le(at, 8), load_le(at + 8, 8), out);
    out->rejected += at != end;
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
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *at = wire + start[i], *end = wire + start[i + 1];

        if (form[i] == AERO_PFNS)
            translate_pfns(at, end, map, out);
        else if (form[i] == AERO_RANGE_WORDS)
            translate_words(at, end, map, out);
        else
            translate_entries(at, end, map, out);
    }
    out->wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    out->cpu_ns = aero_now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return 0;
}

struct handoff {
    const uint8_t *wire;
    const uint64_t *start;
    int64_t count;
    int kick, ack;
    uint8_t *shared;
    uint8_t *taken;
};

/* eventfds that are open and not full neither fail nor return short. */
static void signal_side(int fd)
{
    uint64_t one = 1;

    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

static void wait_side(int fd)
{
    uint64_t count;

    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

static uint64_t request_bytes(const struct handoff *handoff, int64_t i)
{
    return handoff->start[i + 1] - handoff->start[i];
}

static void *device_side(void *argument)
{
    struct handoff *handoff = argument;

    for (int64_t i = 0; i < handoff->count; i++) {
        wait_side(handoff->kick);
        memcpy(handoff->taken, handoff->shared, request_bytes(handoff, i));
        signal_side(handoff->ack);
    }
    return NULL;
}

static int hand_over(struct handoff *handoff, int64_t *wall_ns, int64_t *cpu_ns)
{
    pthread_t device;
    int error = pthread_create(&device, NULL, device_side, handoff);
    int64_t wall, cpu;

    if (error)
        return error;
    cpu = aero_now_ns(CLOCK_PROCESS_CPUTIME_ID);
    wall = aero_now_ns(CLOCK_MONOTONIC);
    for (int64_t i = 0; i < handoff->count; i++) {
        memcpy(handoff->shared, handoff->wire + handoff->start[i], request_bytes(handoff, i));
        signal_side(handoff->kick);
        wait_side(handoff->ack);
    }
    *wall_ns = aero_now_ns(CLOCK_MONOTONIC) - wall;
    *cpu_ns = aero_now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    pthread_join(device, NULL);
    return 0;
}

/* A driver thread passes each request to a device thread through one shared buffer, kicks it and
 * sleeps until it answers, as tell_host() does (drivers/virtio/virtio_balloon.c). */
int aero_handoff(const uint8_t *wire, const uint64_t *start, int64_t count, int64_t *wall_ns,
                 int64_t *cpu_ns)
{
    struct handoff handoff = {.wire = wire, .start = start, .count = count};
    uint64_t largest = 1;
    int error;

    for (int64_t i = 0; i < count; i++)
        if (request_bytes(&handoff, i) > largest)
            largest = request_bytes(&handoff, i);
    handoff.shared = malloc(largest);
    handoff.taken = malloc(largest);
    handoff.kick = eventfd(0, EFD_CLOEXEC);
    handoff.ack = eventfd(0, EFD_CLOEXEC);
    if (!handoff.shared || !handoff.taken)
        error = ENOMEM;
    else if (handoff.kick < 0 || handoff.ack < 0)
        error = errno;
    else
        error = hand_over(&handoff, wall_ns, cpu_ns);
    close(handoff.ack);
    close(handoff.kick);
    free(handoff.taken);
    free(handoff.shared);
    return error;
}
