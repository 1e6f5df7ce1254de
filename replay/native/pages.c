/* The model's memory: mapped, populated, stamped, and looked at again after the run. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static const uint64_t HUGE_PAGE_BYTES = UINT64_C(2) << 20;

/* Map `size_bytes` at a 2 MiB boundary. NULL, and *error, when the kernel will not. */
uint8_t *aero_map_memory(uint64_t size_bytes, int fd, int shared, int *error)
{
    int flags = MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE) | (fd < 0 ? MAP_ANONYMOUS : 0);
    uint64_t slack_bytes = HUGE_PAGE_BYTES, head_bytes;
    uint8_t *wide, *base;

    *error = 0;
    /* A wide reservation finds an aligned place; the mapping itself is put inside it. */
    wide = mmap(NULL, size_bytes + slack_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (wide == MAP_FAILED) {
        *error = errno;
        return NULL;
    }
    head_bytes = -(uintptr_t)wide % HUGE_PAGE_BYTES;
    base = mmap(wide + head_bytes, size_bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
    if (base == MAP_FAILED) {
        *error = errno;
        munmap(wide, size_bytes + slack_bytes);
        return NULL;
    }
    if (head_bytes)
        munmap(wide, head_bytes);
    munmap(base + size_bytes, slack_bytes - head_bytes);
    return base;
}

int aero_unmap_memory(uint8_t *base, uint64_t size_bytes)
{
    return munmap(base, size_bytes) ? errno : 0;
}

int aero_advise_all(const struct aero_memory *memory, int advice)
{
    return madvise(memory->base, memory->size_bytes, advice) ? errno : 0;
}

/* Give every page of the runs memory of its own. EINVAL when a run lies outside the mapping. */
int aero_populate(const struct aero_memory *memory, const uint64_t *first_page,
                  const uint64_t *pages, int64_t count)
{
    uint64_t size_pages = memory->size_bytes >> AERO_PAGE_SHIFT;

    for (int64_t i = 0; i < count; i++)
        if (first_page[i] > size_pages || pages[i] > size_pages - first_page[i])
            return EINVAL;
    for (int64_t i = 0; i < count; i++) {
        uint8_t *start = memory->base + (first_page[i] << AERO_PAGE_SHIFT);
        uint64_t length = pages[i] << AERO_PAGE_SHIFT;

        if (madvise(start, length, MADV_POPULATE_WRITE) == 0)
            continue;
        if (errno != EINVAL)
            return errno;
        for (uint64_t at = 0; at < length; at += AERO_PAGE_BYTES)
            ((volatile uint8_t *)start)[at] = 0; /* before Linux 5.14 */
    }
    return 0;
}

/* Never zero, different for each page and seed. Mixer: splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t stamp_of(uint64_t page, uint64_t seed)
{
    uint64_t x = page + seed * UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) | 1;
}

enum { LAST_WORD = AERO_PAGE_BYTES / sizeof(uint64_t) - 1 };

/* Write a word at both ends of each page that `state` calls stamped. */
int aero_stamp(const struct aero_memory *memory, const uint8_t *state, uint64_t seed)
{
    uint64_t size_pages = memory->size_bytes >> AERO_PAGE_SHIFT;

    for (uint64_t page = 0; page < size_pages; page++) {
        uint64_t *word = (uint64_t *)(memory->base + (page << AERO_PAGE_SHIFT));

        if (state[page] != AERO_STAMPED)
            continue;
        word[0] = stamp_of(page, seed);
        word[LAST_WORD] = stamp_of(page, ~seed);
    }
    return 0;
}

enum { PAGEMAP_ENTRIES = 512 };

/* A private mapping of a file has memory of its own where it has copies: present, and not the
 * file's (Documentation/admin-guide/mm/pagemap.rst, bits 63 and 61). */
static int copies(const struct aero_memory *memory, uint8_t *resident)
{
    uint64_t size_pages = memory->size_bytes >> AERO_PAGE_SHIFT, entry[PAGEMAP_ENTRIES];
    uint64_t first = (uintptr_t)memory->base >> AERO_PAGE_SHIFT;
    int error = 0, fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return errno;
    for (uint64_t page = 0; page < size_pages && !error; page += PAGEMAP_ENTRIES) {
        uint64_t left = size_pages - page;
        ssize_t want = sizeof(*entry) * (left < PAGEMAP_ENTRIES ? left : PAGEMAP_ENTRIES);

        if (pread(fd, entry, want, (off_t)((first + page) * sizeof(*entry))) != want)
            error = EIO;
        for (ssize_t i = 0; !error && i < want / (ssize_t)sizeof(*entry); i++)
            resident[page + i] = entry[i] >> 63 && !(entry[i] >> 61 & 1);
    }
    close(fd);
    return error;
}

/* One byte a page, 1 when memory stands behind it. For shared memory that is its page cache, whether
 * or not this process maps the page (mm/mincore.c); huge pages of hugetlb count where mapped. */
int aero_residency(const struct aero_memory *memory, uint8_t *resident)
{
    uint64_t size_pages = memory->size_bytes >> AERO_PAGE_SHIFT;

    if (memory->fd >= 0 && !memory->shared)
        return copies(memory, resident);
    if (mincore(memory->base, memory->size_bytes, resident))
        return errno;
    for (uint64_t page = 0; page < size_pages; page++)
        resident[page] &= 1;
    return 0;
}

static int is_zero(const uint64_t *word)
{
    uint64_t any = 0;

    for (int i = 0; i <= LAST_WORD; i++)
        any |= word[i];
    return any == 0;
}

static int is_stamped(const uint64_t *word, uint64_t page, uint64_t seed)
{
    return word[0] == stamp_of(page, seed) && word[LAST_WORD] == stamp_of(page, ~seed);
}

static const uint64_t ZERO_PAGE[LAST_WORD + 1];

/* A hole of shared memory is not read through the mapping, which would fill it again: it is read
 * through the file, or, where there is no descriptor, taken for what it is. */
static const uint64_t *look(const struct aero_memory *memory, uint64_t page, int resident,
                            uint64_t *copy)
{
    if (memory->shared && memory->fd < 0 && !resident)
        return ZERO_PAGE;
    if (!memory->shared || memory->fd < 0)
        return (const uint64_t *)(memory->base + (page << AERO_PAGE_SHIFT));
    if (pread(memory->fd, copy, AERO_PAGE_BYTES, (off_t)(page << AERO_PAGE_SHIFT)) !=
        AERO_PAGE_BYTES)
        memset(copy, 0xff, AERO_PAGE_BYTES); /* neither zero nor a stamp */
    return copy;
}

static int is_right(const uint64_t *word, uint64_t page, uint8_t state, uint64_t seed,
                    struct aero_findings *findings)
{
    switch (state) {
    case AERO_STAMPED:
        findings->stamped_checked++;
        return is_stamped(word, page, seed);
    case AERO_LAZY:
        findings->lazy_checked++;
        if (is_stamped(word, page, seed))
            return 1;
        findings->lazy_freed++;
        return is_zero(word);
    default:
        findings->gone_checked++;
        return is_zero(word);
    }
}

/* Read every page that was ever populated: stamps kept where they must be, zero over the whole page
 * where it must be gone. Pages never populated are left alone (reading maps the zero page); their
 * residency says enough. `resident` is from before, because reading changes it. */
int aero_verify(const struct aero_memory *memory, const uint8_t *state, const uint8_t *resident,
                uint64_t seed, struct aero_findings *findings)
{
    uint64_t size_pages = memory->size_bytes >> AERO_PAGE_SHIFT;
    uint64_t copy[LAST_WORD + 1];

    *findings = (struct aero_findings){.first_wrong_page = -1};
    for (uint64_t page = 0; page < size_pages; page++) {
        if (state[page] == AERO_NEVER)
            continue;
        if (is_right(look(memory, page, resident[page], copy), page, state[page], seed, findings))
            continue;
        if (findings->wrong++ == 0)
            findings->first_wrong_page = (int64_t)page;
    }
    return 0;
}
