/*
 * The records that our BPF programs put into their rings: the only definition.
 *
 * tracer/engine/decode.py and decode_calls.py declare the same layout for numpy;
 * tests/unit/test_wire_layout.py compiles this file and compares every offset. Records have a fixed
 * size per ring, so that a drain can view the mapped ring as one strided array. Times are
 * bpf_ktime_get_ns (CLOCK_MONOTONIC); 0 means not observed.
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
	FLAG_HINT_ID = 4,       /* hint_id was sent; nothing is missing */
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

/* Handlers of QEMU's balloon, in the order of tracer/sites/recover.py. */
enum aerostat_handler {
	HANDLER_OUTPUT = 0,     /* inflate and deflate, told apart by the queue's index */
	HANDLER_REPORT = 1,
	HANDLER_STATS = 2,
	HANDLER_HINT = 3,
	HANDLERS,
};

/* Numbers of Call in tracer/trace/schema.py. */
enum aerostat_call {
	CALL_MADVISE = 0,
	CALL_FALLOCATE = 1,
	CALL_PROCESS_MADVISE = 2,
	CALL_MMAP = 3,
	CALLS,
};

/* Indices of host_vm.counts; each is a sum since the VM was added. */
enum aerostat_count {
	HOST_LOST_REQUESTS,          /* the ring was full, or no room to remember the thread */
	HOST_LOST_CALLS,
	HOST_QUOTA_REQUESTS,         /* the VM was over its quota */
	HOST_QUOTA_CALLS,
	HOST_LOST_INFLATE_PAGES,     /* named by requests that were lost, whatever the cause */
	HOST_LOST_DEFLATE_PAGES,
	HOST_LOST_OTHER_PAGES,       /* of an inflate or a deflate whose queue could not be read */
	HOST_LOST_PARTS,             /* further records of a request whose first is there */
	HOST_LOST_THREADS,           /* calls in no request: no room to remember the thread */
	HOST_LOST_PIECES,            /* of a vector: unreadable, or the program could not run again */
	HOST_OUTSIDE_CALLS,          /* on memory that is not the guest's: not recorded, no loss */
	HOST_LONE_PUSHES,            /* of an element that was not seen to be popped; not in HIT_PUSH */
	HOST_HIT_POP,                /* in the order of aerostat_handler */
	HOST_HIT_POP_REPORT,
	HOST_HIT_POP_STATS,
	HOST_HIT_POP_HINT,
	HOST_HIT_PUSH,               /* likewise */
	HOST_HIT_PUSH_REPORT,
	HOST_HIT_PUSH_STATS,
	HOST_HIT_PUSH_HINT,
	HOST_HIT_CALL,               /* in the order of aerostat_call */
	HOST_HIT_FALLOCATE,
	HOST_HIT_PROCESS_MADVISE,
	HOST_HIT_MMAP,
	HOST_COUNTS,
};

enum aerostat_vm_flag {
	VM_MERGE = 1,           /* merge adjacent calls: its ring holds host_calls, else host_call */
	VM_ALL_CALLS = 2,       /* its handlers are not known: record every call on guest memory */
	VM_NO_CALLS = 4,        /* its requests alone are wanted, though another VM has calls probed */
};

enum aerostat_event {
	EVENT_TARGET,
	EVENT_ACTUAL,
	EVENT_RUN_STATE,
	HOST_EVENTS,
};

#define AEROSTAT_LATEST 8       /* a power of two */

/* The latest of one kind of event; number n of them (from 0) is in place n % AEROSTAT_LATEST. */
struct host_event {
	unsigned long long count;
	unsigned long long value[AEROSTAT_LATEST];
	unsigned long long ts_ns[AEROSTAT_LATEST];
};

#define NO_REQUEST (~0ULL)
#define AEROSTAT_REGIONS 8      /* regions of guest memory that calls are held against */
#define AEROSTAT_PIECES 64      /* pieces of a process_madvise that one run of a program looks at */

/* One VM that is recorded: user space fills in the first part, the programs count in the rest. */
struct host_vm {
	unsigned int slot;              /* of its rings in the arrays of maps */
	unsigned int flags;
	unsigned int queue_index_offset; /* of VirtQueue.queue_index */
	unsigned int pad;
	unsigned long long quota_records; /* per second */
	unsigned long long quota_bytes;
	unsigned long long window_ns;   /* begin of the second that is counted */
	unsigned long long window_records;
	unsigned long long window_bytes;
	unsigned long long next_token[2];
	unsigned long long counts[HOST_COUNTS];
	struct host_event events[HOST_EVENTS];
};

/* Where a VM's guest memory is, for calls outside requests: HVAs half-open, and file descriptors. */
struct host_memory {
	unsigned long long begin[AEROSTAT_REGIONS];
	unsigned long long end[AEROSTAT_REGIONS];
	unsigned int fd[AEROSTAT_REGIONS];
	unsigned int fd_valid[AEROSTAT_REGIONS];
};

/* One virtqueue buffer as the host's device model saw it, from virtqueue_pop to virtqueue_push. */
struct host_request {
	unsigned long long token;       /* of the request among this VM's; not the trace's number */
	unsigned long long vq;          /* HVA of QEMU's VirtQueue */
	unsigned long long pop_ns;
	unsigned long long push_ns;
	unsigned long long discard_ns;
	unsigned long long discard_bytes;
	unsigned long long first_gpa;   /* of the first descriptor, with first_hva: one point of the map */
	unsigned long long first_hva;
	unsigned int discard_calls;
	unsigned int tid;
	unsigned int hint_id;           /* with FLAG_HINT_ID */
	unsigned int total;             /* PFNs or entries of the whole request */
	unsigned short queue_index;     /* 0xffff: not read */
	unsigned short handler;         /* enum aerostat_handler */
	unsigned short wire;
	unsigned short chunk;           /* 0 is first; later chunks repeat the header */
	unsigned int filled;            /* PFNs or entries in this record */
	unsigned int flags;
	union aerostat_payload payload;
};

/* A run of like system calls: equal call, advice, length and errno, addresses adjacent. */
struct host_calls {
	unsigned long long token;       /* of the request they belong to; NO_REQUEST for none */
	unsigned long long address;     /* first call's address, or file offset (fallocate) */
	unsigned long long length_bytes;
	unsigned long long first_ns;    /* entry of the first call */
	unsigned long long last_ns;     /* return of the last call */
	unsigned long long total_ns;
	unsigned long long worst_ns;
	unsigned int count;
	int step;                       /* +1 rising, -1 falling, 0 single */
	int advice;                     /* madvise's, or fallocate's mode, or mmap's flags */
	int error;
	unsigned int call;              /* enum aerostat_call */
	unsigned int tid;
	unsigned int fd;                /* of fallocate */
	unsigned int pieces;            /* of the process_madvise that begins here; else 0 */
};

/*
 * One system call, or one piece of a process_madvise, of a VM without VM_MERGE. With the ring's header
 * in front it fills a cache line, and rings begin at one. errno ends at 4095, and the kernel takes no
 * more than 1024 pieces.
 */
struct host_call {
	unsigned long long token;       /* as in host_calls, and so on */
	unsigned long long address;
	unsigned long long length_bytes;
	unsigned long long first_ns;    /* entry of the call */
	unsigned long long last_ns;     /* its return */
	int advice;
	unsigned int tid;
	unsigned int fd_or_pieces;      /* process_madvise: as `pieces` of host_calls; else as `fd` */
	unsigned short error;
	unsigned char call;
	unsigned char later;            /* 1: a piece after the one that carries the time of all */
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

/* A request of one page, as compaction sends two of for each page that it moves: its head alone. */
#define GUEST_SINGLE_BYTES (sizeof(struct guest_request) - sizeof(union aerostat_payload) + 8)

/* What a guest_event tells. The first three are buffers of a virtqueue, the others single events. */
enum guest_event_kind {
	GUEST_EVENT_HINT_ID,    /* value: command id of the begin or the end of free page hints */
	GUEST_EVENT_HINT_BLOCK, /* value: GPA of a free block of length_bytes */
	GUEST_EVENT_STATS,      /* an answer to a request for statistics */
	GUEST_EVENT_TARGET,     /* value: 4 KiB pages that the balloon is to hold */
	GUEST_EVENT_ACTUAL,     /* value: 4 KiB pages that it holds, now that this is the target */
	GUEST_EVENT_PUFF,       /* value: sleeps after which there was nothing to send */
	GUEST_EVENT_KINDS,
};

struct guest_event {
	unsigned long long begin_ns;    /* STATS: interrupt by which the device asked */
	unsigned long long send_ns;     /* HINT_*: virtqueue_add_*buf entered; single events: when */
	unsigned long long kick_ns;     /* virtqueue_kick returned */
	unsigned long long end_ns;      /* STATS: work function returned */
	unsigned long long value;
	unsigned long long length_bytes;
	unsigned int tid;
	unsigned short kind;
	unsigned short flags;
};

/* The latest of the driver's own figures. */
struct guest_state {
	unsigned long long target_pages;
	unsigned long long actual_pages;
	unsigned long long actual_ns;   /* 0 before the driver has written it */
	unsigned long long target_known;
};

/* Indices of the map `counters` of the guest's programs. */
enum guest_count {
	GUEST_LOST_REQUESTS,    /* ring full, or too many threads: inflates, deflates, reports */
	GUEST_LOST_EVENTS,      /* hints and statistics */
	GUEST_LOST_MARKS,       /* single events */
	GUEST_LOST_INFLATE_PAGES, /* named by requests that were lost, page migrations left out */
	GUEST_LOST_DEFLATE_PAGES,
	GUEST_HIT_TELL,
	GUEST_HIT_REPORT,
	GUEST_HIT_KICK,
	GUEST_HIT_ACK,
	GUEST_HIT_HINT,         /* runs of the work function that sends hints */
	GUEST_HIT_HINT_ID,
	GUEST_HIT_HINT_BLOCK,
	GUEST_HIT_STATS,
	GUEST_COUNTS,
};

#endif
