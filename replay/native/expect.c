/* What a plan may do and must leave, worked out before and without it. */
#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static bool may_join(const struct aero_ops *ops, const struct aero_rules *rules, int64_t i,
                     int64_t in_call)
{
    uint8_t call = rules->call[ops->advice[i]];

    return i > 0 && in_call < MAX_RANGES && ops->advice[i] == ops->advice[i - 1] &&
           (!ops->thread || ops->thread[i] == ops->thread[i - 1]) &&
           (call == AERO_MADVISE || call == AERO_NOTHING);
}

/* Index of the first operation that must not be carried out, -1 when all may be. */
int64_t aero_check(const struct aero_memory *memory, const struct aero_ops *ops,
                   const struct aero_rules *rules, int threads)
{
    int64_t in_call = 0;

    for (int64_t i = 0; i < ops->count; i++) {
        uint64_t offset = ops->offset_bytes[i], length = ops->length_bytes[i];

        if ((offset | length) % AERO_PAGE_BYTES || length == 0)
            return i;
        /* Written so that it cannot wrap. */
        if (offset >= memory->size_bytes || length > memory->size_bytes - offset)
            return i;
        if (rules->call[ops->advice[i]] == AERO_REFUSED)
            return i;
        if (rules->call[ops->advice[i]] == AERO_FALLOCATE && memory->fd < 0)
            return i;
        if (ops->thread && ops->thread[i] >= threads)
            return i;
        if (ops->joined && ops->joined[i] && !may_join(ops, rules, i, in_call))
            return i;
        in_call = ops->joined && ops->joined[i] ? in_call + 1 : 1;
    }
    return -1;
}

static uint8_t after(uint8_t page, uint8_t effect)
{
    switch (effect) {
    case AERO_FREES:
        return page == AERO_NEVER ? AERO_NEVER : AERO_GONE;
    case AERO_FREES_LATER:
        return page == AERO_STAMPED ? AERO_LAZY : page;
    case AERO_FILLS:
        return page == AERO_NEVER || page == AERO_GONE ? AERO_FILLED : page;
    default:
        return page;
    }
}

/* Work out, without touching memory, what each page (one byte of `state`) must be after the plan. A
 * discard that failed may have taken a part of its pages. */
int aero_expect(const struct aero_memory *memory, const struct aero_ops *ops,
                const struct aero_rules *rules, const uint8_t *failed, uint8_t *state)
{
    if (aero_check(memory, ops, rules, AERO_MAX_THREADS) >= 0)
        return EINVAL;
    for (int64_t i = 0; i < ops->count; i++) {
        uint64_t first = ops->offset_bytes[i] >> AERO_PAGE_SHIFT;
        uint64_t end = first + (ops->length_bytes[i] >> AERO_PAGE_SHIFT);
        uint8_t effect = rules->effect[ops->advice[i]];

        if (failed[i] && effect == AERO_FREES)
            effect = AERO_FREES_LATER;
        for (uint64_t page = first; page < end && effect != AERO_KEEPS; page++)
            state[page] = after(state[page], effect);
    }
    return 0;
}

/* Try an advice on one page of this process: 0, or the errno that says that the kernel lacks it. */
int aero_probe(int advice, int vector)
{
    int flags = MAP_ANONYMOUS | (advice == MADV_REMOVE ? MAP_SHARED : MAP_PRIVATE);
    void *page = mmap(NULL, AERO_PAGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    struct iovec range = {page, AERO_PAGE_BYTES};
    int error = 0, pidfd;

    if (page == MAP_FAILED)
        return errno;
    if (!vector) {
        error = madvise(page, AERO_PAGE_BYTES, advice) ? errno : 0;
    } else if ((pidfd = aero_open_self()) < 0) {
        error = errno;
    } else {
        error = syscall(SYS_process_madvise, pidfd, &range, 1, advice, 0) < 0 ? errno : 0;
        close(pidfd);
    }
    munmap(page, AERO_PAGE_BYTES);
    return error;
}
