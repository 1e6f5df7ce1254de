/* A watched execution: memory behind the process, sampled by the thread that executes. A thread of its
 * own would have to be interrupted by every flush, and so change what it looks at. */
#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK_BYTES = 512 /* of st_blocks, whatever the file system (stat(2)) */ };

/* Second number of /proc/PID/statm: resident pages. */
static int64_t rss_bytes(int statm)
{
    char text[128], *second;
    ssize_t size = pread(statm, text, sizeof(text) - 1, 0);

    text[size > 0 ? size : 0] = '\0';
    second = strchr(text, ' ');
    return second ? strtoll(second, NULL, 10) * sysconf(_SC_PAGESIZE) : -1;
}

static int64_t file_bytes(int file)
{
    struct stat status;

    return file < 0 || fstat(file, &status) ? -1 : (int64_t)status.st_blocks * BLOCK_BYTES;
}

static void sample(struct watcher *watcher, int64_t operations)
{
    struct aero_watch *watch = watcher->watch;
    int64_t at = watch->samples++;

    watch->at_ns[at] = aero_now_ns(CLOCK_MONOTONIC) - watcher->begin_ns;
    watch->operations[at] = operations;
    watch->rss_bytes[at] = rss_bytes(watcher->statm);
    watch->file_bytes[at] = file_bytes(watcher->file);
}

/* The last place is kept for the sample at the end. */
void aero_watcher_sample(struct watcher *watcher, int64_t operations)
{
    if (watcher->watch->samples + 1 < watcher->watch->capacity)
        sample(watcher, operations);
    watcher->due = operations + watcher->watch->every;
}

/* 0, or why there is nothing to sample. Takes the first sample. */
int aero_watcher_open(struct watcher *watcher, struct aero_watch *watch,
                      const struct aero_memory *memory)
{
    *watcher = (struct watcher){.watch = watch, .file = memory->shared ? memory->fd : -1};
    watch->samples = 0;
    watcher->statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (watcher->statm < 0)
        return errno;
    watcher->begin_ns = aero_now_ns(CLOCK_MONOTONIC);
    aero_watcher_sample(watcher, 0);
    return 0;
}

void aero_watcher_close(struct watcher *watcher, int64_t operations)
{
    struct aero_watch *watch = watcher->watch;

    /* One after the last operation gives way to this one: other threads may have had more to do. */
    if (watch->samples > 1 && watch->operations[watch->samples - 1] == operations)
        watch->samples--;
    if (watch->samples < watch->capacity)
        sample(watcher, operations);
    close(watcher->statm);
}
