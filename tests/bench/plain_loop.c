/* What the executor is held against: a loop that anybody would write for one strategy alone. */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

static int64_t cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* CPU time of giving each range back, -1 where a call fails. */
int64_t discard_each(uint8_t *base, const uint64_t *offset, const uint64_t *length, int64_t count)
{
    int64_t begin = cpu_ns();

    for (int64_t i = 0; i < count; i++)
        if (madvise(base + offset[i], length[i], MADV_DONTNEED))
            return -1;
    return cpu_ns() - begin;
}
