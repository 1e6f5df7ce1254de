/*
 * Guest side, first part: the threads of the virtio_balloon driver, and what is emitted for them.
 *
 * One record per virtqueue buffer, no probe per page. The record of an inflate, a deflate or a report
 * is built in a per-thread slot and emitted when the outermost probed function returns, so that it
 * carries the time of the free and of the config write that follow the request.
 *
 * Loads as kprobes, or with FENTRY defined as fentry and fexit. Structure offsets come as macros
 * from the running kernel's BTF (tracer/sites/guest_layout.py): no kernel header is included.
 */
#include <linux/types.h>
#include <uapi/linux/ptrace.h>
#include "records.h"

#ifdef FENTRY
#define CONTEXT unsigned long long
#define ARG1(ctx) ((u64)(ctx)[0])
#define ARG2(ctx) ((u64)(ctx)[1])
#define ARG3(ctx) ((u64)(ctx)[2])
#define ARG4(ctx) ((u64)(ctx)[3])
#define ARG1_AT_RETURN(ctx, unknown) ARG1(ctx)
#else
#define CONTEXT struct pt_regs
#define ARG1(ctx) ((u64)PT_REGS_PARM1(ctx))
#define ARG2(ctx) ((u64)PT_REGS_PARM2(ctx))
#define ARG3(ctx) ((u64)PT_REGS_PARM3(ctx))
#define ARG4(ctx) ((u64)PT_REGS_PARM4(ctx))
#define ARG1_AT_RETURN(ctx, unknown) (unknown)
#endif

/* Their sizes are chosen when they are made (tracer/sites/guest_probes.py), not here. */
BPF_RINGBUF_OUTPUT(requests, 1);
BPF_RINGBUF_OUTPUT(singles, 1);
BPF_RINGBUF_OUTPUT(events, 1);
BPF_PERCPU_ARRAY(counters, u64, GUEST_COUNTS);
BPF_ARRAY(state, struct guest_state, 1);

/* Numbers of Caller and Queue in tracer/trace/schema.py. */
enum { CALLER_OTHER, CALLER_TARGET, CALLER_OOM, CALLER_MIGRATION, CALLER_REMOVE, CALLER_REPORTING };
enum { QUEUE_INFLATE = 0, QUEUE_DEFLATE = 1, QUEUE_REPORTING = 4, QUEUE_UNKNOWN = 0xffff };

struct slot {
	u64 slept_since_ns;     /* in msleep for "Out of puff!" */
	u64 vb;                 /* struct virtio_balloon, once it is known */
	u64 target_at;          /* where the word of the config that is being read will be */
	u32 sent;               /* the record holds a request that is not emitted yet */
	u32 inner;              /* made by tell_host itself: no caller function was seen */
	struct guest_request request;
};
BPF_HASH(slots, u64, struct slot, 64);
/* Never written. A program may be preempted, so what it fills in is no scratch of its CPU. */
BPF_ARRAY(fresh, struct slot, 1);

/* When the device last used a buffer of a virtqueue, by its interrupt. */
BPF_HASH(acks, u64, u64, 16);

static __always_inline void add(int which, u64 much)
{
	u64 *value = counters.lookup(&which);

	/* An interrupt, or a thread that takes over, may count on this CPU meanwhile. */
	if (value)
		__sync_fetch_and_add(value, much);
}

static __always_inline void count(int which) { add(which, 1); }

/* Counts a request that its ring has no room for, and its pages as the kernel itself counts them. */
static __always_inline void lose(struct guest_request *request)
{
	count(GUEST_LOST_REQUESTS);
	/* balloon_inflate and balloon_deflate of /proc/vmstat leave page migrations out. */
	if (request->caller == CALLER_MIGRATION)
		return;
	if (request->queue == QUEUE_INFLATE)
		add(GUEST_LOST_INFLATE_PAGES, request->total);
	else if (request->queue == QUEUE_DEFLATE)
		add(GUEST_LOST_DEFLATE_PAGES, request->total);
}

static __always_inline void clear(struct guest_request *request)
{
	request->send_ns = 0;
	request->kick_ns = 0;
	request->ack_ns = 0;
	request->wake_ns = 0;
	request->free_ns = 0;
	request->end_ns = 0;
	request->puff_ns = 0;
	request->puffs = 0;
	request->flags = 0;
	request->filled = 0;
	request->total = 0;
}

static __always_inline struct slot *open_slot(u64 *thread, u16 caller, u64 begin_ns)
{
	int zero = 0;
	struct slot *zeroes = fresh.lookup(&zero), *slot;

	if (!zeroes)
		return 0;
	slots.update(thread, zeroes);
	slot = slots.lookup(thread);
	if (!slot)
		return 0;
	slot->request.begin_ns = begin_ns;
	slot->request.caller = caller;
	slot->request.tid = (u32)*thread;
	return slot;
}

static __always_inline void emit(struct slot *slot)
{
	struct guest_request *request = &slot->request;
	int full = 0;

	if (slot->sent && request->wire == WIRE_PFNS && request->filled <= 1)
		full = singles.ringbuf_output(request, GUEST_SINGLE_BYTES, BPF_RB_NO_WAKEUP);
	else if (slot->sent)
		full = requests.ringbuf_output(request, sizeof(*request), BPF_RB_NO_WAKEUP);
	if (full)
		lose(request);
	slot->sent = 0;
}

static __always_inline void emit_event(struct guest_event *event)
{
	if (events.ringbuf_output(event, sizeof(*event), BPF_RB_NO_WAKEUP))
		count(event->kind <= GUEST_EVENT_STATS ? GUEST_LOST_EVENTS : GUEST_LOST_MARKS);
}

static __always_inline int enter(u16 caller)
{
	u64 thread = bpf_get_current_pid_tgid();

	open_slot(&thread, caller, bpf_ktime_get_ns());
	return 0;
}

static __always_inline void emit_value(u16 kind, u64 value)
{
	struct guest_event event = {};

	event.kind = kind;
	event.tid = (u32)bpf_get_current_pid_tgid();
	event.send_ns = bpf_ktime_get_ns();
	event.value = value;
	emit_event(&event);
}

/*
 * The balloon's size as the driver has just written it to the device's config. A guest drives its
 * rate, so user space looks at the latest; that the target is reached is worth an event.
 */
static __always_inline void note_actual(struct slot *slot)
{
	int zero = 0;
	struct guest_state *now = state.lookup(&zero);
	u64 before;
	u32 pages = 0;

	if (!now || !slot->vb || slot->request.caller == CALLER_MIGRATION ||
	    bpf_probe_read_kernel(&pages, 4, (void *)(slot->vb + VB_NUM_PAGES)))
		return;
	before = now->actual_pages;
	now->actual_pages = pages;
	now->actual_ns = bpf_ktime_get_ns();
	if (now->target_known && pages == now->target_pages && pages != before)
		emit_value(GUEST_EVENT_ACTUAL, pages);
}

static __always_inline int leave(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (!slot)
		return 0;
	/* The work function writes the size to the device even where it could move no page. */
	if (slot->sent || slot->request.caller == CALLER_TARGET)
		note_actual(slot);
	if (!slot->sent && slot->request.puffs)
		/* A sleep after which there was not one page to send: no request carries it. */
		emit_value(GUEST_EVENT_PUFF, slot->request.puffs);
	if (slot->sent && slot->request.caller == CALLER_TARGET)
		slot->request.end_ns = bpf_ktime_get_ns();
	emit(slot);
	slots.delete(&thread);
	return 0;
}
