/* Fuzzes the C that reads requests, built with the address and the undefined-behaviour sanitizer:
 *
 *     native SECONDS KEPT_FILE INPUT...
 *
 * Each input is run as it is, then changed at random until the time is up. An input that reaches code
 * that none has reached is kept as a further one to change (gcc's trace-pc says where it was). One
 * that a sanitizer dies of is written to KEPT_FILE. */
#define _GNU_SOURCE
#include "core.h"
#include "ring.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BYTES = 8192, MAX_KEPT = 4096, PLACES = 1 << 16, OPERATION_BYTES = 19 };
enum { TRANSLATE_FORMS = 3, ACCOUNT = 3, POP, TAKE, DRIVES, RING_SIZE = 8 };

struct input {
    uint8_t *data;
    size_t size;
};

static struct input kept[MAX_KEPT];
static size_t kept_count;
static uint8_t reached[PLACES];
static int64_t reached_count, executions;
static int news;
static struct input current;
static const char *kept_file;

/* Called by the instrumented sources at every branch. */
void __sanitizer_cov_trace_pc(void)
{
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    uint8_t *seen = &reached[(pc ^ pc >> 16) % PLACES];

    reached_count += !*seen;
    news |= !*seen;
    *seen = 1;
}

static void on_abort(int number)
{
    int fd = open(kept_file, O_CREAT | O_TRUNC | O_WRONLY, 0644);

    if (fd >= 0 && write(fd, current.data, current.size) == (ssize_t)current.size)
        close(fd);
    signal(number, SIG_DFL);
    raise(number);
}

static void translate(uint8_t form, const uint8_t *content, size_t size)
{
    static const uint64_t gpa[] = {0, 100 << 12, UINT64_C(0xfffffffffffff) << 12};
    static const uint64_t length[] = {64 << 12, 64 << 12, 4096};
    static const uint64_t offset[] = {0, 128 << 12, 512 << 12};
    const struct aero_map map = {gpa, length, offset, 3};
    uint64_t half = size / 2, start[] = {0, half, size};
    uint8_t forms[] = {form, form};
    struct aero_translation out;

    if (aero_translate(content, start, forms, 2, &map, &out) != 0 || out.rejected < 0 ||
        out.pages < 0 || out.pages > out.entries * 129 || out.entries > (int64_t)size / 4)
        abort();
}

/* Operations as a broken plan could have them; none is carried out. */
static void account(const uint8_t *content, size_t size)
{
    const struct aero_memory memory = {NULL, 1 << 20, -1, 0};
    int64_t count = (int64_t)(size / OPERATION_BYTES);
    struct aero_rules rules = {.call = {[4] = AERO_MADVISE, [8] = AERO_MADVISE, [9] = AERO_REMAP},
                               .effect = {[4] = AERO_FREES, [8] = AERO_FREES_LATER,
                                          [9] = AERO_FILLS}};
    uint8_t *advice = malloc(count + 1), *joined = malloc(count + 1), *thread = malloc(count + 1);
    uint8_t *failed = calloc(count + 1, 1), *state = calloc(memory.size_bytes >> 12, 1);
    uint64_t *place = malloc(8 * (count + 1)), *length = malloc(8 * (count + 1));
    int64_t *request = calloc(count + 1, 8), bad;
    struct aero_ops ops = {advice, place, length, count, joined, thread, request};

    for (int64_t i = 0; i < count; i++) {
        const uint8_t *at = content + i * OPERATION_BYTES;

        advice[i] = at[0];
        joined[i] = at[1] & 1;
        thread[i] = at[2] % 3;
        memcpy(&place[i], at + 3, 8);
        memcpy(&length[i], at + 11, 8);
    }
    bad = aero_check(&memory, &ops, &rules, 2);
    if (bad < -1 || bad >= count)
        abort();
    if (bad < 0 && aero_expect(&memory, &ops, &rules, failed, state))
        abort();
    free(advice), free(joined), free(thread), free(failed), free(state);
    free(place), free(length), free(request);
}

/* The content is all that driver and device share: rings, then what descriptors may point at. */
static struct aero_ring ring_of(uint8_t *content, size_t size, uint8_t **shared)
{
    struct aero_ring ring = {.size = RING_SIZE, .event_idx = size & 1, .indirect = !(size & 2)};
    uint64_t least = aero_ring_place(&ring, 0);

    ring.shared_bytes = least + size;
    *shared = ring.shared = calloc(1, ring.shared_bytes);
    memcpy(ring.shared, content, size);
    return ring;
}

/* The device reads whatever a driver left, as often as there are places in the ring. */
static void pop(uint8_t *content, size_t size)
{
    uint8_t *shared, *to = malloc(4096);
    struct aero_ring ring = ring_of(content, size, &shared);
    struct aero_device device = {0};

    for (int i = 0; i < RING_SIZE + 2; i++) {
        struct aero_buffer buffer = {to, 4096, 0, 0, 0};
        int found = aero_device_pop(&device, &ring, i % 3, &buffer);

        if (found == AERO_TAKEN && (buffer.length_bytes > 4096 || buffer.head >= RING_SIZE))
            abort();
        if (found == AERO_TAKEN)
            aero_device_push(&device, &ring, buffer.head, 0);
        aero_device_notify(&device, &ring);
    }
    free(shared), free(to);
}

/* The driver believes no device either: buffers are added, then the rings overwritten. */
static void take(uint8_t *content, size_t size)
{
    uint8_t *shared;
    struct aero_ring ring = ring_of(content, size, &shared);
    struct aero_driver driver;
    struct aero_element elements[] = {{ring.gpa, 8, 0}, {ring.gpa + 8, 8, 1}};

    aero_driver_reset(&driver, &ring);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3; i++)
            aero_driver_add(&driver, &ring, elements, 1 + i % 2);
        memcpy(ring.shared, content, size);
        aero_driver_kick(&driver, &ring);
        for (int i = 0; i < RING_SIZE + 2; i++)
            aero_driver_take(&driver, &ring);
    }
    free(shared);
}

/* A copy of just its size, so that one byte too far is seen. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *content;

    if (size == 0)
        return;
    current = (struct input){(uint8_t *)data, size};
    content = malloc(size - 1 ? size - 1 : 1);
    memcpy(content, data + 1, size - 1);
    if (data[0] % DRIVES < TRANSLATE_FORMS)
        translate(data[0] % DRIVES, content, size - 1);
    else if (data[0] % DRIVES == ACCOUNT)
        account(content, size - 1);
    else if (data[0] % DRIVES == POP)
        pop(content, size - 1);
    else
        take(content, size - 1);
    free(content);
    executions++;
}

static void keep(const uint8_t *data, size_t size)
{
    if (kept_count == MAX_KEPT)
        return;
    kept[kept_count] = (struct input){malloc(size + 1), size};
    memcpy(kept[kept_count++].data, data, size);
}

/* xorshift64 (Marsaglia 2003) */
static uint64_t next_random(void)
{
    static uint64_t state = UINT64_C(0x9e3779b97f4a7c15);

    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static size_t change(uint8_t *data, size_t size)
{
    static const uint64_t edges[] = {0, 1, 4095, 4096, 0x80000000, 0xffffffff, UINT64_MAX,
                                     UINT64_MAX << 12, UINT64_C(1) << 52, UINT64_C(1) << 63};
    size_t at = next_random() % size, width = 1 + next_random() % 8;

    switch (next_random() % 5) {
    case 0:
        data[at] ^= 1 << next_random() % 8;
        return size;
    case 1:
        data[at] = (uint8_t)next_random();
        return size;
    case 2:
        return 1 + next_random() % size;
    case 3: /* a stretch twice */
        if (size + width > MAX_BYTES || at + width > size)
            return size;
        memmove(data + at + width, data + at, size - at);
        return size + width;
    default:
        if (at + width <= size)
            memcpy(data + at, &edges[next_random() % (sizeof(edges) / sizeof(*edges))], width);
        return size;
    }
}

static void read_input(const char *path)
{
    uint8_t data[MAX_BYTES];
    FILE *file = fopen(path, "rb");
    size_t size = file ? fread(data, 1, sizeof(data), file) : 0;

    if (!file || !size) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    for (uint8_t drive = 0; drive < DRIVES; drive++) {
        data[0] = drive;
        run(data, size);
        keep(data, size);
    }
}

int main(int count, char **arguments)
{
    uint8_t data[MAX_BYTES];
    time_t end = time(NULL) + (count > 3 ? atoi(arguments[1]) : 0);

    if (count < 4)
        return 2;
    kept_file = arguments[2];
    signal(SIGABRT, on_abort);
    alarm((unsigned)atoi(arguments[1]) + 60);
    for (int i = 3; i < count; i++)
        read_input(arguments[i]);
    while (executions % 256 || time(NULL) < end) {
        const struct input *from = &kept[next_random() % kept_count];
        size_t size = from->size;

        memcpy(data, from->data, size);
        for (uint64_t left = 1 + next_random() % 8; left; left--)
            size = change(data, size);
        news = 0;
        run(data, size);
        if (news)
            keep(data, size);
    }
    printf("{\"executions\": %ld, \"inputs\": %zu, \"branches\": %ld}\n", (long)executions,
           kept_count, (long)reached_count);
    return 0;
}
