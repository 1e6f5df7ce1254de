/* Which parts of the model's memory lie in huge pages. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Linux 6.7, include/uapi/linux/fs.h (struct pm_scan_arg, struct page_region); under names of our own,
 * because the C library's headers may be older than the kernel, or have them. */
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct found {
    uint64_t start, end, categories;
};

#define SCAN_PAGES _IOWR('f', 16, struct scan)
enum { IS_HUGE = 1 << 6, FOUND = 256, UNIT_SHIFT = 21 };

/* One byte for each 2 MiB, 1 where a huge page is mapped over all of it; a rest that is shorter has
 * none. ENOTTY where the kernel cannot say. */
int aero_huge(const struct aero_memory *memory, uint8_t *huge)
{
    uint64_t units = memory->size_bytes >> UNIT_SHIFT, base = (uintptr_t)memory->base;
    uint64_t end = base + (units << UNIT_SHIFT);
    struct found found[FOUND];
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), error = 0;

    if (fd < 0)
        return errno;
    memset(huge, 0, units);
    for (uint64_t at = base; at < end && !error;) {
        struct scan scan = {.size = sizeof(scan), .start = at, .end = end,
                            .vec = (uintptr_t)found, .vec_len = FOUND,
                            .category_mask = IS_HUGE, .return_mask = IS_HUGE};
        int count = ioctl(fd, SCAN_PAGES, &scan);

        if (count < 0)
            error = errno;
        for (int i = 0; i < count; i++) {
            uint64_t first = (found[i].start - base + (1 << UNIT_SHIFT) - 1) >> UNIT_SHIFT;
            uint64_t last = (found[i].end - base) >> UNIT_SHIFT;

            for (uint64_t unit = first; unit < last; unit++)
                huge[unit] = 1;
        }
        if (!error && scan.walk_end <= at)
            error = EIO;
        at = scan.walk_end;
    }
    close(fd);
    return error;
}
