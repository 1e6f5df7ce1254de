/*
 * Host side, third part: the balloon handlers of QEMU, probed inside the handlers alone, so that no
 * other device's queue is ever hit:
 *   on_pop_N  after virtqueue_pop returned: rax holds the element, or 0 for an empty queue
 *   on_push   at the call of virtqueue_push(vq, elem, len)
 * Structure layouts of QEMU come with the VM, found in the binary or known by version.
 */
struct iov {
	u64 base;
	u64 length_bytes;
};

struct element {
	u32 out_num;
	u32 in_num;
	u64 in_addr;
	u64 out_addr;
	u64 in_sg;
	u64 out_sg;
	struct iov first_out;
	struct iov first_in;
};

static __always_inline void read_element(u64 base, struct element *element)
{
	bpf_probe_read_user(&element->out_num, 4, (void *)(base + ELEM_OUT_NUM));
	bpf_probe_read_user(&element->in_num, 4, (void *)(base + ELEM_IN_NUM));
	bpf_probe_read_user(&element->in_addr, 8, (void *)(base + ELEM_IN_ADDR));
	bpf_probe_read_user(&element->out_addr, 8, (void *)(base + ELEM_OUT_ADDR));
	bpf_probe_read_user(&element->in_sg, 8, (void *)(base + ELEM_IN_SG));
	bpf_probe_read_user(&element->out_sg, 8, (void *)(base + ELEM_OUT_SG));
	if (element->out_num)
		bpf_probe_read_user(&element->first_out, 16, (void *)element->out_sg);
	if (element->in_num)
		bpf_probe_read_user(&element->first_in, 16, (void *)element->in_sg);
}

/* PFN arrays: the first device-readable descriptor of the element. */
static __always_inline void put_pfns(struct host_request *out, struct element *element, u32 chunk)
{
	u64 bytes = (u64)out->total * 4 - chunk * AEROSTAT_PFNS * 4;

	/* Keeps clang from checking another copy of the value than the one it passes on. */
	asm volatile("" : "+r"(bytes));
	if (bytes > AEROSTAT_PFNS * 4)
		bytes = AEROSTAT_PFNS * 4;
	out->filled = bytes / 4;
	if (bpf_probe_read_user(out->payload.pfn, bytes,
				(void *)(element->first_out.base + chunk * AEROSTAT_PFNS * 4))) {
		out->flags |= FLAG_PAYLOAD_FAULT;
		out->filled = 0;
	}
}

/* Reports and hints: the device-writable descriptors, by guest-physical address and length. */
static __always_inline void put_entries(struct host_request *out, struct element *element)
{
	u32 i;

	for (i = 0; i < AEROSTAT_ENTRIES; i++) {
		struct iov iov = {};
		u64 gpa = 0;

		if (i >= out->total)
			break;
		if (bpf_probe_read_user(&gpa, 8, (void *)(element->in_addr + i * 8)) ||
		    bpf_probe_read_user(&iov, 16, (void *)(element->in_sg + i * 16))) {
			out->flags |= FLAG_PAYLOAD_FAULT;
			break;
		}
		out->payload.entry[i].gpa = gpa;
		out->payload.entry[i].length_bytes = iov.length_bytes;
		out->filled = i + 1;
	}
	if (out->total > AEROSTAT_ENTRIES)
		out->flags |= FLAG_TRUNCATED;
}

/* Which of the LOST_*_PAGES counts an inflate or a deflate belongs to; its index may not be known. */
static __always_inline int pages_count(u16 queue_index)
{
	if (queue_index > 1)
		return HOST_LOST_OTHER_PAGES;
	return queue_index ? HOST_LOST_DEFLATE_PAGES : HOST_LOST_INFLATE_PAGES;
}

static __always_inline u32 pfns_of(struct element *element)
{
	u64 pfns = element->out_num ? element->first_out.length_bytes / 4 : 0;

	return pfns > 0xffffffff ? 0xffffffff : pfns;
}

/* A request that is not recorded: whether for want of room or by its quota, its pages are counted. */
static __always_inline void lose(struct host_vm *vm, struct inflight *in, struct element *element,
				 u16 queue_index, u32 chunk, int which)
{
	if (chunk) {
		count(vm, HOST_LOST_PARTS, 1);
		return;
	}
	count(vm, which, 1);
	if (!in->handler)
		count(vm, pages_count(queue_index), pfns_of(element));
}

/* Returns 1 where the record was lost. */
static __always_inline int emit_request(struct host_vm *vm, struct inflight *in, u64 thread, u64 vq,
					struct element *element, u32 chunk)
{
	struct host_request *out;
	u16 queue_index = 0xffff;
	u32 slot = vm->slot;
	void *ring = requests.lookup(&slot);

	bpf_probe_read_user(&queue_index, 2, (void *)(vq + vm->queue_index_offset));
	if (!ring)
		return 1;
	if (!admit(vm, bpf_ktime_get_ns(), sizeof(*out))) {
		lose(vm, in, element, queue_index, chunk, HOST_QUOTA_REQUESTS);
		return 1;
	}
	out = bpf_ringbuf_reserve(ring, sizeof(*out), 0);
	if (!out) {
		lose(vm, in, element, queue_index, chunk, HOST_LOST_REQUESTS);
		return 1;
	}
	out->token = in->token;
	out->vq = vq;
	out->pop_ns = in->pop_ns;
	/* QEMU keeps a statistics buffer until it wants the next one, so its return is not seen. */
	out->push_ns = in->handler == HANDLER_STATS ? 0 : bpf_ktime_get_ns();
	out->discard_ns = in->discard_ns;
	out->discard_bytes = in->discard_bytes;
	out->discard_calls = in->discard_calls;
	out->tid = (u32)thread;
	out->handler = in->handler;
	out->queue_index = queue_index;
	out->chunk = chunk;
	out->flags = 0;
	out->filled = 0;
	out->hint_id = 0;
	out->first_gpa = 0;
	out->first_hva = element->first_out.base;
	if (in->handler == HANDLER_OUTPUT) {
		/* QEMU reads the device-readable descriptors here, whatever else the guest adds. */
		out->wire = WIRE_PFNS;
		out->total = pfns_of(element);
		bpf_probe_read_user(&out->first_gpa, 8, (void *)element->out_addr);
		if (element->out_num > 1 || out->total > AEROSTAT_CHUNKS * AEROSTAT_PFNS)
			out->flags |= FLAG_TRUNCATED;
		put_pfns(out, element, chunk);
	} else {
		out->wire = WIRE_SCATTERLIST;
		out->total = in->handler == HANDLER_STATS ? 0 : element->in_num;
		if (in->handler == HANDLER_HINT && element->out_num) {
			out->flags |= FLAG_HINT_ID;
			bpf_probe_read_user(&out->hint_id, 4, (void *)element->first_out.base);
		}
		if (out->total) {
			out->first_hva = element->first_in.base;
			bpf_probe_read_user(&out->first_gpa, 8, (void *)element->in_addr);
		}
		put_entries(out, element);
	}
	bpf_ringbuf_submit(out, BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline void emit_chunks(struct host_vm *vm, struct inflight *in, u64 thread, u64 vq)
{
	struct element element = {};
	u32 chunk;

	read_element(in->element, &element);
#pragma unroll
	for (chunk = 0; chunk < AEROSTAT_CHUNKS; chunk++) {
		if (chunk && (in->handler || pfns_of(&element) <= chunk * AEROSTAT_PFNS))
			break;
		/* A request without one of its parts is told by its truncated pages. */
		if (emit_request(vm, in, thread, vq, &element, chunk))
			break;
	}
}

static __always_inline int pop(struct pt_regs *ctx, u32 handler)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 element = PT_REGS_RC(ctx);
	struct host_vm *vm = vm_of(thread);
	struct inflight *in;
	u64 *next;

	if (!vm)
		return 0;
	count(vm, HOST_HIT_POP + handler, 1);
	if (!element) {
		inflight.delete(&thread);
		return 0;
	}
	in = open_thread(&thread, vm, HOST_LOST_REQUESTS);
	if (!in)
		return 0;
	/*
	 * QEMU runs a balloon's handlers under its big lock, except for hints, which have an I/O thread:
	 * so they are numbered apart, and the two series never share a number.
	 */
	next = &vm->next_token[handler == HANDLER_HINT];
	in->token = *next * 2 + (handler == HANDLER_HINT);
	*next += 1;
	in->element = element;
	in->handler = handler;
	in->no_calls = vm->flags & VM_NO_CALLS;
	in->pop_ns = bpf_ktime_get_ns();
	if (handler == HANDLER_STATS) {
		emit_chunks(vm, in, thread, 0);
		inflight.delete(&thread);
	}
	return 0;
}

int on_pop_0(struct pt_regs *ctx) { return pop(ctx, HANDLER_OUTPUT); }
int on_pop_1(struct pt_regs *ctx) { return pop(ctx, HANDLER_REPORT); }
int on_pop_2(struct pt_regs *ctx) { return pop(ctx, HANDLER_STATS); }
int on_pop_3(struct pt_regs *ctx) { return pop(ctx, HANDLER_HINT); }

int on_push(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct inflight *in = inflight.lookup(&thread);
	struct host_vm *vm = vm_of(thread);

	if (!vm)
		return 0;
	if (!in || in->element != PT_REGS_PARM2(ctx)) {
		count(vm, HOST_LONE_PUSHES, 1);
		return 0;
	}
	count(vm, HOST_HIT_PUSH + (in->handler & (HANDLERS - 1)), 1);
	emit_run(vm, in, bpf_ktime_get_ns());
	emit_chunks(vm, in, thread, PT_REGS_PARM1(ctx));
	inflight.delete(&thread);
	return 0;
}
