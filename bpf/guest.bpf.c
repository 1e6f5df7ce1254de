/*
 * Guest side: the virtio_balloon driver. One record per virtqueue buffer, no probe per page.
 *
 * tell_host() holds a whole inflate or deflate request (at most 256 PFNs) in vb->pfns and is out of
 * line in every kernel checked (5.10 to 7.2), while fill_balloon() is inlined. A record is built in
 * a per-thread slot and emitted when the outermost probed function returns, so that it carries the
 * time of the free and of the config write that follow the request.
 *
 * Loads as kprobes, or with FENTRY defined as fentry and fexit. Structure offsets come as macros
 * from the running kernel's BTF (tracer/guest_probes.py): no kernel header is included.
 */
#include <linux/types.h>
#include <uapi/linux/ptrace.h>
#include "records.h"

#ifdef FENTRY
#define CONTEXT unsigned long long
#define ARG1(ctx) ((u64)(ctx)[0])
#define ARG2(ctx) ((u64)(ctx)[1])
#define ARG3(ctx) ((u64)(ctx)[2])
#else
#define CONTEXT struct pt_regs
#define ARG1(ctx) ((u64)PT_REGS_PARM1(ctx))
#define ARG2(ctx) ((u64)PT_REGS_PARM2(ctx))
#define ARG3(ctx) ((u64)PT_REGS_PARM3(ctx))
#endif

BPF_RINGBUF_OUTPUT(requests, REQUESTS_PAGES);

enum { LOST_REQUESTS, HIT_TELL, HIT_REPORT, HIT_KICK, HIT_ACK, COUNTERS };
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);

/* Numbers of Caller and Queue in tracer/trace/schema.py. */
enum { CALLER_OTHER, CALLER_TARGET, CALLER_OOM, CALLER_MIGRATION, CALLER_REMOVE, CALLER_REPORTING };
enum { QUEUE_INFLATE = 0, QUEUE_DEFLATE = 1, QUEUE_REPORTING = 4, QUEUE_UNKNOWN = 0xffff };

struct slot {
	u64 slept_since_ns;     /* in msleep for "Out of puff!" */
	u32 sent;               /* the record holds a request that is not emitted yet */
	u32 inner;              /* made by tell_host itself: no caller function was seen */
	struct guest_request request;
};
BPF_HASH(slots, u64, struct slot, 64);
BPF_PERCPU_ARRAY(fresh, struct slot, 1);
BPF_HASH(acks, u64, u64, 16);

static __always_inline void count(int which)
{
	u64 *value = counters.lookup(&which);
	if (value)
		*value += 1;
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
	struct slot *slot = fresh.lookup(&zero);

	if (!slot)
		return 0;
	clear(&slot->request);
	slot->slept_since_ns = 0;
	slot->sent = 0;
	slot->inner = 0;
	slot->request.begin_ns = begin_ns;
	slot->request.caller = caller;
	slot->request.tid = (u32)*thread;
	slots.update(thread, slot);
	return slots.lookup(thread);
}

static __always_inline void emit(struct slot *slot)
{
	if (slot->sent &&
	    requests.ringbuf_output(&slot->request, sizeof(slot->request), BPF_RB_NO_WAKEUP))
		count(LOST_REQUESTS);
	slot->sent = 0;
}

static __always_inline int enter(u16 caller)
{
	u64 thread = bpf_get_current_pid_tgid();

	open_slot(&thread, caller, bpf_ktime_get_ns());
	return 0;
}

static __always_inline int leave(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (!slot)
		return 0;
	if (slot->sent && slot->request.caller == CALLER_TARGET)
		slot->request.end_ns = bpf_ktime_get_ns();
	emit(slot);
	slots.delete(&thread);
	return 0;
}

int on_work_enter(CONTEXT *ctx) { return enter(CALLER_TARGET); }
int on_work_exit(CONTEXT *ctx) { return leave(); }
int on_oom_enter(CONTEXT *ctx) { return enter(CALLER_OOM); }
int on_oom_exit(CONTEXT *ctx) { return leave(); }
int on_migrate_enter(CONTEXT *ctx) { return enter(CALLER_MIGRATION); }
int on_migrate_exit(CONTEXT *ctx) { return leave(); }
int on_remove_enter(CONTEXT *ctx) { return enter(CALLER_REMOVE); }
int on_remove_exit(CONTEXT *ctx) { return leave(); }

/* Deflate: stage a is the dequeue, so it begins here and not at the work function. */
int on_leak_enter(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (slot)
		slot->request.begin_ns = bpf_ktime_get_ns();
	return 0;
}

int on_leak_exit(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (slot && slot->sent)
		slot->request.free_ns = bpf_ktime_get_ns();
	return 0;
}

/* fill_balloon() sleeps 200 ms after "Out of puff!" (since 2.6.25, drivers/virtio/virtio_balloon.c). */
int on_msleep_enter(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (slot)
		slot->slept_since_ns = bpf_ktime_get_ns();
	return 0;
}

int on_msleep_exit(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (slot && slot->slept_since_ns) {
		slot->request.puff_ns += bpf_ktime_get_ns() - slot->slept_since_ns;
		slot->request.puffs++;
		slot->slept_since_ns = 0;
	}
	return 0;
}

static __always_inline struct slot *begin_send(u64 *thread, u16 caller)
{
	struct slot *slot = slots.lookup(thread);
	u64 now = bpf_ktime_get_ns();

	if (!slot) {
		slot = open_slot(thread, caller, 0);
		if (!slot)
			return 0;
		slot->inner = 1;
	} else if (slot->sent) {
		/* A page migration sends twice: the new page in, the old page out. */
		emit(slot);
		clear(&slot->request);
		slot->request.begin_ns = 0;
	}
	slot->request.send_ns = now;
	slot->request.flags = 0;
	slot->sent = 1;
	return slot;
}

static __always_inline int finish_send(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);
	u64 *ack;

	if (!slot || !slot->sent)
		return 0;
	slot->request.wake_ns = bpf_ktime_get_ns();
	ack = acks.lookup(&slot->request.vq);
	if (ack && *ack > slot->request.send_ns)
		slot->request.ack_ns = *ack;
	if (slot->inner) {
		emit(slot);
		slots.delete(&thread);
	}
	return 0;
}

/* void tell_host(struct virtio_balloon *vb, struct virtqueue *vq) */
int on_tell_enter(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 vb = ARG1(ctx), vq = ARG2(ctx), inflate = 0, deflate = 0, bytes;
	struct slot *slot = begin_send(&thread, CALLER_OTHER);
	u32 pfns = 0;

	count(HIT_TELL);
	if (!slot)
		return 0;
	bpf_probe_read_kernel(&inflate, 8, (void *)(vb + VB_INFLATE_VQ));
	bpf_probe_read_kernel(&deflate, 8, (void *)(vb + VB_DEFLATE_VQ));
	bpf_probe_read_kernel(&pfns, 4, (void *)(vb + VB_NUM_PFNS));
	slot->request.vq = vq;
	slot->request.wire = WIRE_PFNS;
	slot->request.total = pfns;
	slot->request.queue = vq == inflate ? QUEUE_INFLATE :
			      vq == deflate ? QUEUE_DEFLATE : QUEUE_UNKNOWN;
	bytes = (u64)pfns * 4;
	asm volatile("" : "+r"(bytes));
	if (bytes > AEROSTAT_PFNS * 4) {
		bytes = AEROSTAT_PFNS * 4;
		slot->request.flags |= FLAG_TRUNCATED;
	}
	slot->request.filled = bytes / 4;
	if (bpf_probe_read_kernel(slot->request.payload.pfn, bytes, (void *)(vb + VB_PFNS))) {
		slot->request.flags |= FLAG_PAYLOAD_FAULT;
		slot->request.filled = 0;
	}
	return 0;
}

int on_tell_exit(CONTEXT *ctx) { return finish_send(); }

#ifdef TRACE_REPORTS
/*
 * int virtballoon_free_page_report(struct page_reporting_dev_info *, struct scatterlist *, unsigned)
 * (since 5.7). A page's frame number is its place in the vmemmap array.
 */
int on_report_enter(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 vb = ARG1(ctx) - VB_PR_DEV_INFO, sg = ARG2(ctx), vmemmap = VMEMMAP_DEFAULT;
	u32 entries = ARG3(ctx), i;
	struct slot *slot = begin_send(&thread, CALLER_REPORTING);

	count(HIT_REPORT);
	if (!slot)
		return 0;
	if (VMEMMAP_SYMBOL)
		bpf_probe_read_kernel(&vmemmap, 8, (void *)VMEMMAP_SYMBOL);
	bpf_probe_read_kernel(&slot->request.vq, 8, (void *)(vb + VB_REPORTING_VQ));
	slot->request.wire = WIRE_SCATTERLIST;
	slot->request.queue = QUEUE_REPORTING;
	slot->request.total = entries;
	for (i = 0; i < AEROSTAT_ENTRIES; i++) {
		u64 link = 0;
		u32 offset = 0, length = 0;

		if (i >= entries)
			break;
		if (bpf_probe_read_kernel(&link, 8, (void *)(sg + i * SG_BYTES + SG_PAGE_LINK)) ||
		    bpf_probe_read_kernel(&offset, 4, (void *)(sg + i * SG_BYTES + SG_OFFSET)) ||
		    bpf_probe_read_kernel(&length, 4, (void *)(sg + i * SG_BYTES + SG_LENGTH))) {
			slot->request.flags |= FLAG_PAYLOAD_FAULT;
			break;
		}
		/* The two low bits of page_link are the chain and end marks. */
		slot->request.payload.entry[i].gpa =
			(((link & ~3ULL) - vmemmap) / PAGE_STRUCT_BYTES) * 4096 + offset;
		slot->request.payload.entry[i].length_bytes = length;
		slot->request.filled = i + 1;
	}
	if (entries > AEROSTAT_ENTRIES)
		slot->request.flags |= FLAG_TRUNCATED;
	return 0;
}

int on_report_exit(CONTEXT *ctx) { return finish_send(); }
#endif

/* bool virtqueue_kick(struct virtqueue *): every virtio device calls it, so leave at once. */
int on_kick_exit(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (slot && slot->sent && !slot->request.kick_ns) {
		count(HIT_KICK);
		slot->request.kick_ns = bpf_ktime_get_ns();
	}
	return 0;
}

/* void balloon_ack(struct virtqueue *vq): the device used the buffer (interrupt context). */
int on_ack(CONTEXT *ctx)
{
	u64 vq = ARG1(ctx), now = bpf_ktime_get_ns();

	count(HIT_ACK);
	acks.update(&vq, &now);
	return 0;
}
