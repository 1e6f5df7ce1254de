/*
 * The records that our BPF programs put into their rings: the only definition.
 *
 * tracer/decode.py declares the same layout for numpy; tests/unit/test_wire_layout.py compiles this
 * file and compares every offset. Records have a fixed size per ring, so that a drain can view the
 * mapped ring as one strided array. Times are bpf_ktime_get_ns (CLOCK_MONOTONIC); 0 means not observed.
 */
#ifndef AEROSTAT_RECORDS_H
#define AEROSTAT_RECORDS_H

#define AEROSTAT_PFNS 256       /* PFNs in one record: what Linux puts into one request at most */
#define AEROSTAT_ENTRIES 64     /* scatterlist entries in one record; Linux reports 32 at most */
#define AEROSTAT_CHUNKS 4       /* records that one request may be split into (Windows sends 1024) */

enum aerostat_wire {
	WIRE_PFNS = 0,
	WIRE_SCATTERLIST = 2,
};

/* Why a record is less than the request was. */
enum aerostat_flag {
	FLAG_PAYLOAD_FAULT = 1, /* the request's pages could not be read */
	FLAG_TRUNCATED = 2,     /* more pages or entries than AEROSTAT_CHUNKS records hold */
};

/* One scatterlist entry: a guest-physical (host side) or page-struct derived address and a length. */
struct aerostat_entry {
	unsigned long long gpa;
	unsigned long long length_bytes;
};

/* What both sides' request records end with. */
union aerostat_payload {
	unsigned int pfn[AEROSTAT_PFNS];
	struct aerostat_entry entry[AEROSTAT_ENTRIES];
};

/* One virtqueue buffer as the host's device model saw it, from virtqueue_pop to virtqueue_push. */
struct host_request {
	unsigned long long seq;
	unsigned long long vq;          /* HVA of QEMU's VirtQueue */
	unsigned long long pop_ns;
	unsigned long long push_ns;
	unsigned long long discard_ns;
	unsigned long long discard_bytes;
	unsigned long long first_gpa;   /* of the first descriptor, with first_hva: one point of the map */
	unsigned long long first_hva;
	unsigned int discard_calls;
	unsigned int tid;
	unsigned int tgid;
	unsigned int total;             /* PFNs or entries of the whole request */
	unsigned short queue_index;     /* 0xffff: not read */
	unsigned short handler;         /* index of the handler function in the attach order */
	unsigned short wire;
	unsigned short chunk;           /* 0 is first; later chunks repeat the header */
	unsigned int filled;            /* PFNs or entries in this record */
	unsigned int flags;
	union aerostat_payload payload;
};

/* A run of like system calls: equal call, advice, length and errno, addresses adjacent. */
struct host_calls {
	unsigned long long seq;         /* of the request they belong to; ~0 for none */
	unsigned long long address;     /* first call's address (madvise) or file offset (fallocate) */
	unsigned long long length_bytes;
	unsigned long long first_ns;    /* entry of the first call */
	unsigned long long last_ns;     /* return of the last call */
	unsigned long long total_ns;
	unsigned long long worst_ns;
	unsigned int count;
	int step;                       /* +1 rising, -1 falling, 0 single */
	int advice;
	int error;
	unsigned int call;              /* 0 madvise, 1 fallocate */
	unsigned int tid;
	unsigned int tgid;
	unsigned int pad;
};

/* One virtqueue buffer as the guest's driver sent it. */
struct guest_request {
	unsigned long long begin_ns;    /* work function (inflate) or leak_balloon (deflate) entered */
	unsigned long long send_ns;     /* tell_host or virtballoon_free_page_report entered */
	unsigned long long kick_ns;     /* virtqueue_kick returned */
	unsigned long long ack_ns;      /* balloon_ack entered (interrupt) */
	unsigned long long wake_ns;     /* tell_host or virtballoon_free_page_report returned */
	unsigned long long free_ns;     /* leak_balloon returned */
	unsigned long long end_ns;      /* update_balloon_size_func returned */
	unsigned long long puff_ns;     /* slept in "Out of puff" before the request */
	unsigned long long vq;
	unsigned int tid;
	unsigned int total;
	unsigned int filled;
	unsigned int flags;
	unsigned short queue;           /* Queue of tracer/trace/schema.py; 0xffff unknown */
	unsigned short wire;
	unsigned short caller;
	unsigned short puffs;
	union aerostat_payload payload;
};

#endif
