/*
 * Host side: the balloon handlers of a VMM, and the discards its threads make meanwhile.
 *
 * Probed inside the handler functions alone, so no other device's queue is ever hit:
 *   on_pop   after virtqueue_pop returned: rax holds the element, or 0 for an empty queue
 *   on_push  at the call of virtqueue_push(vq, elem, len)
 * and the madvise and fallocate system calls of a thread between the two.
 * Structure layouts of QEMU come as macros, found in the binary or known by version (tracer/host_probes.py).
 */
#include <linux/types.h>
#include <uapi/linux/ptrace.h>
#include "records.h"

BPF_RINGBUF_OUTPUT(requests, REQUESTS_PAGES);
BPF_RINGBUF_OUTPUT(calls, CALLS_PAGES);

enum { LOST_REQUESTS, LOST_CALLS, HIT_POP, HIT_PUSH, HIT_CALL, COUNTERS };
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);

/* One writer at a time: QEMU runs a balloon's handlers under its big lock. */
BPF_ARRAY(next_seq, u64, 1);

/* A thread that is between pop and push. */
struct inflight {
	u64 seq;
	u64 element;
	u64 pop_ns;
	u64 discard_ns;
	u64 discard_bytes;
	u64 enter_ns;           /* of the system call it is in; 0 for none */
	u64 address;
	u64 length_bytes;
	u32 discard_calls;
	s32 advice;
	u32 call;
	u32 handler;
	u64 last_address;
	struct host_calls run;
};
BPF_HASH(inflight, u64, struct inflight, 256);
BPF_PERCPU_ARRAY(fresh, struct inflight, 1);

static __always_inline void count(int which)
{
	u64 *value = counters.lookup(&which);
	if (value)
		*value += 1;
}

static __always_inline void emit_run(struct inflight *in)
{
	struct host_calls *out;

	if (!in->run.count)
		return;
	out = calls.ringbuf_reserve(sizeof(*out));
	if (!out) {
		count(LOST_CALLS);
	} else {
		__builtin_memcpy(out, &in->run, sizeof(*out));
		calls.ringbuf_submit(out, BPF_RB_NO_WAKEUP);
	}
	in->run.count = 0;
}

static __always_inline int pop(struct pt_regs *ctx, u32 handler)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 element = PT_REGS_RC(ctx);
	int zero = 0;
	struct inflight *in;
	u64 *seq;

	count(HIT_POP);
	if (!element) {
		inflight.delete(&thread);
		return 0;
	}
	in = fresh.lookup(&zero);
	seq = next_seq.lookup(&zero);
	if (!in || !seq)
		return 0;
	__builtin_memset(in, 0, sizeof(*in));
	in->seq = *seq;
	*seq += 1;
	in->element = element;
	in->handler = handler;
	in->pop_ns = bpf_ktime_get_ns();
	inflight.update(&thread, in);
	return 0;
}

int on_pop_0(struct pt_regs *ctx) { return pop(ctx, 0); }
int on_pop_1(struct pt_regs *ctx) { return pop(ctx, 1); }

struct iov {
	u64 base;
	u64 length_bytes;
};

/* PFN arrays: the first device-readable descriptor of the element. */
static __always_inline int put_pfns(struct host_request *out, struct iov *iov, u32 chunk)
{
	u64 bytes = (u64)out->total * 4 - chunk * AEROSTAT_PFNS * 4;

	/* Keeps clang from checking another copy of the value than the one it passes on. */
	asm volatile("" : "+r"(bytes));
	if (bytes > AEROSTAT_PFNS * 4)
		bytes = AEROSTAT_PFNS * 4;
	out->filled = bytes / 4;
	if (bpf_probe_read_user(out->payload.pfn, bytes,
				(void *)(iov->base + chunk * AEROSTAT_PFNS * 4))) {
		out->flags |= FLAG_PAYLOAD_FAULT;
		out->filled = 0;
	}
	return 0;
}

/* Reports: the device-writable descriptors, by guest-physical address and length. */
static __always_inline int put_entries(struct host_request *out, u64 addresses, u64 iovs)
{
	u32 i;

	for (i = 0; i < AEROSTAT_ENTRIES; i++) {
		struct iov iov = {};
		u64 gpa = 0;

		if (i >= out->total)
			break;
		if (bpf_probe_read_user(&gpa, 8, (void *)(addresses + i * 8)) ||
		    bpf_probe_read_user(&iov, 16, (void *)(iovs + i * 16))) {
			out->flags |= FLAG_PAYLOAD_FAULT;
			break;
		}
		out->payload.entry[i].gpa = gpa;
		out->payload.entry[i].length_bytes = iov.length_bytes;
		out->filled = i + 1;
	}
	if (out->total > AEROSTAT_ENTRIES)
		out->flags |= FLAG_TRUNCATED;
	return 0;
}

struct element {
	u32 out_num;
	u32 in_num;
	u64 in_addr;
	u64 out_addr;
	u64 in_sg;
	u64 out_sg;
};

static __always_inline void read_element(u64 base, struct element *element)
{
	bpf_probe_read_user(&element->out_num, 4, (void *)(base + ELEM_OUT_NUM));
	bpf_probe_read_user(&element->in_num, 4, (void *)(base + ELEM_IN_NUM));
	bpf_probe_read_user(&element->in_addr, 8, (void *)(base + ELEM_IN_ADDR));
	bpf_probe_read_user(&element->out_addr, 8, (void *)(base + ELEM_OUT_ADDR));
	bpf_probe_read_user(&element->in_sg, 8, (void *)(base + ELEM_IN_SG));
	bpf_probe_read_user(&element->out_sg, 8, (void *)(base + ELEM_OUT_SG));
}

static __always_inline int emit_request(struct pt_regs *ctx, struct inflight *in, u64 thread,
					struct element *element, struct iov *iov, u32 chunk)
{
	struct host_request *out = requests.ringbuf_reserve(sizeof(*out));

	if (!out) {
		count(LOST_REQUESTS);
		return 1;
	}
	out->seq = in->seq;
	out->vq = PT_REGS_PARM1(ctx);
	out->pop_ns = in->pop_ns;
	out->push_ns = bpf_ktime_get_ns();
	out->discard_ns = in->discard_ns;
	out->discard_bytes = in->discard_bytes;
	out->discard_calls = in->discard_calls;
	out->tid = (u32)thread;
	out->tgid = thread >> 32;
	out->handler = in->handler;
	out->queue_index = 0xffff;
	bpf_probe_read_user(&out->queue_index, 2, (void *)(out->vq + VQ_QUEUE_INDEX));
	out->chunk = chunk;
	out->flags = 0;
	out->filled = 0;
	out->first_gpa = 0;
	out->first_hva = iov->base;
	if (!in->handler) {
		/* QEMU reads the device-readable descriptors here, whatever else the guest adds. */
		out->wire = WIRE_PFNS;
		out->total = !element->out_num ? 0 : iov->length_bytes / 4 > 0xffffffff ? 0xffffffff : iov->length_bytes / 4;
		bpf_probe_read_user(&out->first_gpa, 8, (void *)element->out_addr);
		if (element->out_num > 1 || out->total > AEROSTAT_CHUNKS * AEROSTAT_PFNS)
			out->flags |= FLAG_TRUNCATED;
		put_pfns(out, iov, chunk);
	} else {
		out->wire = WIRE_SCATTERLIST;
		out->total = element->in_num;
		bpf_probe_read_user(&out->first_gpa, 8, (void *)element->in_addr);
		put_entries(out, element->in_addr, element->in_sg);
	}
	requests.ringbuf_submit(out, BPF_RB_NO_WAKEUP);
	return 0;
}

int on_push(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct inflight *in = inflight.lookup(&thread);
	struct element element = {};
	struct iov iov = {};
	u32 chunk;

	count(HIT_PUSH);
	if (!in || in->element != PT_REGS_PARM2(ctx))
		return 0;
	emit_run(in);
	read_element(in->element, &element);
	bpf_probe_read_user(&iov, 16, (void *)(in->handler ? element.in_sg : element.out_sg));
#pragma unroll
	for (chunk = 0; chunk < AEROSTAT_CHUNKS; chunk++) {
		if (chunk && (in->handler || iov.length_bytes <= chunk * AEROSTAT_PFNS * 4))
			break;
		/* A request without one of its parts is told by its truncated pages. */
		if (emit_request(ctx, in, thread, &element, &iov, chunk))
			break;
	}
	inflight.delete(&thread);
	return 0;
}

#ifdef TRACE_CALLS
static __always_inline int call_enter(u64 address, u64 length_bytes, s32 advice, u32 call)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct inflight *in = inflight.lookup(&thread);

	if (!in)
		return 0;
	in->address = address;
	in->length_bytes = length_bytes;
	in->advice = advice;
	in->call = call;
	in->enter_ns = bpf_ktime_get_ns();
	return 0;
}

/* +1 or -1 where the call continues the run in that direction, else 0. */
static __always_inline s32 continues(struct inflight *in, s32 error)
{
	struct host_calls *run = &in->run;
	s32 step = 0;

	if (!run->count || run->count == 0xffffffff || run->call != in->call ||
	    run->advice != in->advice || run->length_bytes != in->length_bytes || run->error != error)
		return 0;
	if (in->address == in->last_address + in->length_bytes)
		step = 1;
	else if (in->address == in->last_address - in->length_bytes)
		step = -1;
	return MERGE_CALLS && (run->count == 1 || run->step == step) ? step : 0;
}

static __always_inline int call_exit(long result)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct inflight *in = inflight.lookup(&thread);
	u64 now, took;
	s32 error, step;

	if (!in || !in->enter_ns)
		return 0;
	now = bpf_ktime_get_ns();
	took = now - in->enter_ns;
	error = result < 0 ? -result : 0;
	count(HIT_CALL);
	in->discard_calls++;
	in->discard_ns += took;
	if (!error)
		in->discard_bytes += in->length_bytes;
	step = continues(in, error);
	if (step) {
		in->run.step = step;
		in->run.count++;
		in->run.total_ns += took;
		if (took > in->run.worst_ns)
			in->run.worst_ns = took;
	} else {
		emit_run(in);
		in->run.seq = in->seq;
		in->run.address = in->address;
		in->run.length_bytes = in->length_bytes;
		in->run.first_ns = in->enter_ns;
		in->run.total_ns = took;
		in->run.worst_ns = took;
		in->run.count = 1;
		in->run.step = 0;
		in->run.advice = in->advice;
		in->run.error = error;
		in->run.call = in->call;
		in->run.tid = (u32)thread;
		in->run.tgid = thread >> 32;
	}
	in->run.last_ns = now;
	in->last_address = in->address;
	in->enter_ns = 0;
	return 0;
}

/* Classic tracepoints syscalls:sys_enter_* and sys_exit_*: a fixed layout since 2.6.31. */
struct sys_enter {
	u64 common;
	s64 nr;
	u64 args[6];
};
struct sys_exit {
	u64 common;
	s64 nr;
	s64 result;
};

int on_madvise_enter(struct sys_enter *ctx)
{
	return call_enter(ctx->args[0], ctx->args[1], ctx->args[2], 0);
}

int on_fallocate_enter(struct sys_enter *ctx)
{
	return call_enter(ctx->args[2], ctx->args[3], ctx->args[1], 1);
}

int on_call_exit(struct sys_exit *ctx)
{
	return call_exit(ctx->result);
}

/* Raw tracepoints sys_enter and sys_exit: the fallback, on the path of every system call. */
int on_raw_enter(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	u64 nr = ctx->args[1];
	u64 a[4] = {};

	if (nr != NR_MADVISE && nr != NR_FALLOCATE)
		return 0;
	bpf_probe_read_kernel(&a[0], 8, &regs->di);
	bpf_probe_read_kernel(&a[1], 8, &regs->si);
	bpf_probe_read_kernel(&a[2], 8, &regs->dx);
	bpf_probe_read_kernel(&a[3], 8, &regs->r10);
	if (nr == NR_MADVISE)
		return call_enter(a[0], a[1], a[2], 0);
	return call_enter(a[2], a[3], a[1], 1);
}

int on_raw_exit(struct bpf_raw_tracepoint_args *ctx)
{
	return call_exit(ctx->args[1]);
}
#endif
