/*
 * Guest side, last part: statistics, the target, notifications and interrupts.
 */
#ifdef TRACE_STATS
/* void stats_request(struct virtqueue *): the device returned the buffer, and so asks for another */
int on_stats_request(CONTEXT *ctx)
{
	u64 vq = ARG1(ctx), now = bpf_ktime_get_ns();

	acks.update(&vq, &now);
	return 0;
}

/* void update_balloon_stats_func(struct work_struct *) (since 3.19) */
int on_stats_enter(CONTEXT *ctx)
{
	return begin_work(ARG1(ctx) - VB_UPDATE_BALLOON_STATS_WORK + VB_STATS_VQ, 0);
}

int on_stats_exit(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct worker *worker = workers.lookup(&thread);
	u64 *asked;

	if (!worker)
		return 0;
	/* The driver answers nothing where the device has not returned the buffer. */
	if (worker->event.kick_ns) {
		count(GUEST_HIT_STATS);
		asked = acks.lookup(&worker->vq);
		worker->event.kind = GUEST_EVENT_STATS;
		worker->event.begin_ns = asked ? *asked : 0;
		worker->event.end_ns = bpf_ktime_get_ns();
		emit_event(&worker->event);
		acks.delete(&worker->vq);
	}
	workers.delete(&thread);
	return 0;
}
#endif

/*
 * int vp_get(struct virtio_device *, unsigned offset, void *buf, unsigned length), and vm_get() where
 * the device is not on PCI: the driver reads num_pages, the first word of the device's config, when it
 * is told of a change and after each request. Two functions are called vp_get, for old and for new
 * devices, so these are kprobes at both, whatever the other programs are.
 */
int on_target_enter(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);
	u64 vdev = 0;

	if (!slot || slot->request.caller != CALLER_TARGET || slot->sent)
		return 0;
	bpf_probe_read_kernel(&vdev, 8, (void *)(slot->vb + VB_VDEV));
	if (vdev == PT_REGS_PARM1(ctx) && (u32)PT_REGS_PARM2(ctx) == 0 && (u32)PT_REGS_PARM4(ctx) == 4)
		slot->target_at = PT_REGS_PARM3(ctx);
	return 0;
}

int on_target_exit(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);
	struct guest_state *now;
	u32 pages = 0, zero = 0;
	u64 at;

	if (!slot || !slot->target_at)
		return 0;
	at = slot->target_at;
	slot->target_at = 0;
	now = state.lookup(&zero);
	if (!now || bpf_probe_read_kernel(&pages, 4, (void *)at) ||
	    (now->target_known && now->target_pages == pages))
		return 0;
	now->target_known = 1;
	now->target_pages = pages;
	emit_value(GUEST_EVENT_TARGET, pages);
	return 0;
}

/* bool virtqueue_kick(struct virtqueue *): every virtio device calls it, so leave at once. */
int on_kick_exit(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct slot *slot = slots.lookup(&thread);

	if (slot) {
		if (slot->sent && !slot->request.kick_ns &&
		    ARG1_AT_RETURN(ctx, slot->request.vq) == slot->request.vq) {
			count(GUEST_HIT_KICK);
			slot->request.kick_ns = bpf_ktime_get_ns();
		}
		return 0;
	}
#if defined(TRACE_HINTS) || defined(TRACE_STATS)
	struct worker *worker = workers.lookup(&thread);

	if (!worker || ARG1_AT_RETURN(ctx, worker->vq) != worker->vq)
		return 0;
	count(GUEST_HIT_KICK);
	worker->event.kick_ns = bpf_ktime_get_ns();
	if (worker->filled)
		emit_event(&worker->event);
	worker->filled = 0;
#endif
	return 0;
}

#ifdef TRACE_ACKS
/*
 * void balloon_ack(struct virtqueue *vq): the device used the buffer (interrupt context).
 *
 * vring_interrupt() calls it only where the ring holds something new, but between its look and this
 * call, on another CPU, the driver may have taken that and sent the next request, which this is not
 * the answer to. So look again, and in this order: what the device has used, the clock, what the
 * driver has taken. What was used before the clock was read and is taken after it is the answer to
 * the one request under way then. Any other order lets the driver go on in between: its next request
 * is then sent before this time, and answered after it.
 *
 * struct vring_virtqueue begins with the virtqueue. A packed ring keeps no index of what was used, so
 * there no interrupt is observed.
 */
int on_ack(CONTEXT *ctx)
{
	u64 vq = ARG1(ctx), used = 0, now;
	u16 last_used = 0, used_index = 0;
	u8 packed = 1;

	count(GUEST_HIT_ACK);
	bpf_probe_read_kernel(&packed, 1, (void *)(vq + RING_PACKED));
	if (packed || bpf_probe_read_kernel(&used, 8, (void *)(vq + RING_USED)) ||
	    /* struct vring_used: flags, idx, each 16 bits (include/uapi/linux/virtio_ring.h) */
	    bpf_probe_read_kernel(&used_index, 2, (void *)(used + 2)))
		return 0;
	now = bpf_ktime_get_ns();
	if (bpf_probe_read_kernel(&last_used, 2, (void *)(vq + RING_LAST_USED)))
		return 0;
	/* Indices wrap; a driver that is ahead has taken what was used since. */
	if ((s16)(used_index - last_used) > 0)
		acks.update(&vq, &now);
	return 0;
}
#endif
