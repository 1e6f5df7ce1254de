/*
 * Guest side, second part: inflates and deflates.
 *
 * tell_host() holds a whole request (at most 256 PFNs) in vb->pfns and is out of line in every kernel
 * checked (5.10 to 7.2), while fill_balloon() is inlined. The functions around it say why it is called.
 */
int on_work_enter(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = open_slot(&thread, CALLER_TARGET, bpf_ktime_get_ns());

	if (slot)
		slot->vb = ARG1(ctx) - VB_UPDATE_BALLOON_SIZE_WORK;
	return 0;
}

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

	if (!slot)
		return 0;
	/* A driver that leaves takes its pages back one request after the other. */
	if (slot->sent)
		emit(slot);
	clear(&slot->request);
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
		if (!slot) {
			/* No room to remember one more thread. */
			count(GUEST_LOST_REQUESTS);
			return 0;
		}
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

	count(GUEST_HIT_TELL);
	if (!slot)
		return 0;
	bpf_probe_read_kernel(&inflate, 8, (void *)(vb + VB_INFLATE_VQ));
	bpf_probe_read_kernel(&deflate, 8, (void *)(vb + VB_DEFLATE_VQ));
	bpf_probe_read_kernel(&pfns, 4, (void *)(vb + VB_NUM_PFNS));
	slot->vb = vb;
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
