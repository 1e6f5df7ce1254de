/*
 * Host side, second part: a thread at work for its guest, and its discards merged to runs.
 *
 * Calls that follow each other with the same kind, advice, length and result, each beginning where
 * the one before ends (or the reverse), become one record. A run is given to the ring when a call
 * does not fit it, and at the end of the request. Without VM_MERGE a call waits for nothing: it is
 * given to the ring as it returns, in a smaller record.
 */
/* How a call ended, or a piece of its vector. */
struct outcome {
	u64 now;
	u64 took_ns;            /* 0 of a later piece */
	s32 error;
	u32 pieces;             /* of the vector that begins here, else 0 */
	u32 later;
	u32 pad;
};

struct inflight {
	u64 token;              /* of the request; NO_REQUEST where calls are recorded without one */
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
	u32 fd;
	u32 handler;
	u32 no_calls;           /* VM_NO_CALLS of its VM */
	u64 last_address;
	u64 vector;             /* of a process_madvise that has returned: where its next piece is told, */
	u64 vector_bytes;       /* what of its result those take that are not recorded yet, */
	u64 vector_pieces;      /* and how many they are; 0 where none is left */
	struct outcome vector_end;
	struct host_calls run;
};
BPF_HASH(inflight, u64, struct inflight, MAX_THREADS);
/* Never written. A program may be preempted, so what it fills in is no scratch of its CPU. */
BPF_ARRAY(fresh, struct inflight, 1);

/* Returns 0 where there is no room for one more thread, and counts what is lost by that. */
static __always_inline struct inflight *open_thread(u64 *thread, struct host_vm *vm, int lost)
{
	int zero = 0;
	struct inflight *zeroes = fresh.lookup(&zero), *in;

	if (!zeroes)
		return 0;
	if (inflight.update(thread, zeroes)) {
		count(vm, lost, 1);
		return 0;
	}
	in = inflight.lookup(thread);
	if (!in)
		return 0;
	in->token = NO_REQUEST;
	in->run.tid = (u32)*thread;
	return in;
}

/* Whether so many calls may go into the ring in one record of this size; if not, they are counted. */
static __always_inline int admit_calls(struct host_vm *vm, u64 now, u64 bytes, u32 calls)
{
	if (admit(vm, now, bytes))
		return 1;
	count(vm, HOST_QUOTA_CALLS, calls);
	return 0;
}

static __always_inline void emit_run(struct host_vm *vm, struct inflight *in, u64 now)
{
	struct host_calls *out;
	u32 slot = vm->slot;
	void *ring;

	if (!in->run.count)
		return;
	ring = calls.lookup(&slot);
	if (ring && admit_calls(vm, now, sizeof(*out), in->run.count)) {
		out = bpf_ringbuf_reserve(ring, sizeof(*out), 0);
		if (out) {
			__builtin_memcpy(out, &in->run, sizeof(*out));
			bpf_ringbuf_submit(out, BPF_RB_NO_WAKEUP);
		} else {
			count(vm, HOST_LOST_CALLS, in->run.count);
		}
	}
	in->run.count = 0;
}

static __always_inline void emit_call(struct host_vm *vm, struct inflight *in, struct outcome *end)
{
	struct host_call *out;
	u32 slot = vm->slot;
	void *ring = calls.lookup(&slot);

	if (!ring || !admit_calls(vm, end->now, sizeof(*out), 1))
		return;
	out = bpf_ringbuf_reserve(ring, sizeof(*out), 0);
	if (!out) {
		count(vm, HOST_LOST_CALLS, 1);
		return;
	}
	out->token = in->token;
	out->address = in->address;
	out->length_bytes = in->length_bytes;
	out->first_ns = in->enter_ns;
	out->last_ns = end->now;
	out->advice = in->advice;
	out->tid = bpf_get_current_pid_tgid();
	out->fd_or_pieces = in->call == CALL_PROCESS_MADVISE ? end->pieces : in->fd;
	out->error = end->error;
	out->call = in->call;
	out->later = end->later;
	bpf_ringbuf_submit(out, BPF_RB_NO_WAKEUP);
}

/* +1 or -1 where the call continues the run in that direction, else 0. */
static __always_inline s32 continues(struct inflight *in, s32 error)
{
	struct host_calls *run = &in->run;
	s32 step = 0;

	if (!run->count || run->count == 0xffffffff ||
	    run->call != in->call || run->advice != in->advice || run->error != error ||
	    run->length_bytes != in->length_bytes || run->fd != in->fd)
		return 0;
	if (in->address == in->last_address + in->length_bytes)
		step = 1;
	else if (in->address == in->last_address - in->length_bytes)
		step = -1;
	return run->count == 1 || run->step == step ? step : 0;
}

static __always_inline void add_to_run(struct host_vm *vm, struct inflight *in, struct outcome *end)
{
	s32 step = end->pieces ? 0 : continues(in, end->error);

	if (step) {
		in->run.step = step;
		in->run.count++;
		in->run.total_ns += end->took_ns;
		if (end->took_ns > in->run.worst_ns)
			in->run.worst_ns = end->took_ns;
	} else {
		emit_run(vm, in, end->now);
		in->run.token = in->token;
		in->run.address = in->address;
		in->run.length_bytes = in->length_bytes;
		in->run.first_ns = in->enter_ns;
		in->run.total_ns = end->took_ns;
		in->run.worst_ns = end->took_ns;
		in->run.count = 1;
		in->run.step = 0;
		in->run.advice = in->advice;
		in->run.error = end->error;
		in->run.call = in->call;
		in->run.fd = in->fd;
		in->run.pieces = end->pieces;
	}
	in->run.last_ns = end->now;
	in->last_address = in->address;
}

/* Record the call that the thread has just returned from, or one piece of its vector. */
static __always_inline void add_call(struct host_vm *vm, struct inflight *in, struct outcome *end)
{
	if (vm->flags & VM_MERGE)
		add_to_run(vm, in, end);
	else
		emit_call(vm, in, end);
}
