/* What the two threads of an exchange share. */
#ifndef AEROSTAT_SIDES_H
#define AEROSTAT_SIDES_H

#include "execute.h"
#include "lanes.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

struct exchange {
    const struct aero_sent *sent;
    const int *cpus;
    const struct aero_service *service; /* NULL: the device only takes requests */
    struct aero_exchanged *out;
    struct lanes lanes;
    pthread_barrier_t ready;
    uint8_t *received; /* the device's memory, as large as all requests together */
    uint64_t *received_start;
    int64_t served;
    struct run run;
    struct tally tally;
};

/* eventfds that are open and far from full neither fail nor return short. */
static inline void aero_signal(int fd)
{
    uint64_t one = 1;

    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

static inline void aero_clear_signal(int fd)
{
    uint64_t count;

    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

void *aero_device_side(void *exchange);
int aero_driver_side(struct exchange *exchange);

#endif
