/*
 * Guest side, third part: what names free blocks by a scatterlist, reports and hints.
 */
#ifdef TRACE_BLOCKS
/*
 * Address of the variable that holds where the vmemmap array begins, 0 where it begins at its
 * default. In a map, since KASLR moves it at each boot: so the programs stay the same.
 */
BPF_ARRAY(vmemmap_symbol, u64, 1);

/* A page's frame number is its place in the vmemmap array. */
static __always_inline u64 vmemmap_base(void)
{
	u64 base = VMEMMAP_DEFAULT;
	int first = 0;
	u64 *symbol = vmemmap_symbol.lookup(&first);

	if (symbol && *symbol)
		bpf_probe_read_kernel(&base, 8, (void *)*symbol);
	return base;
}

/* Returns 1 where the entry cannot be read. */
static __always_inline int read_entry(u64 sg, u64 vmemmap, u64 *gpa, u64 *length_bytes)
{
	u64 link = 0;
	u32 offset = 0, length = 0;

	if (bpf_probe_read_kernel(&link, 8, (void *)(sg + SG_PAGE_LINK)) ||
	    bpf_probe_read_kernel(&offset, 4, (void *)(sg + SG_OFFSET)) ||
	    bpf_probe_read_kernel(&length, 4, (void *)(sg + SG_LENGTH)))
		return 1;
	/* The two low bits of page_link are the chain and end marks. */
	*gpa = (((link & ~3ULL) - vmemmap) / PAGE_STRUCT_BYTES) * 4096 + offset;
	*length_bytes = length;
	return 0;
}
#endif

#ifdef TRACE_REPORTS
/*
 * int virtballoon_free_page_report(struct page_reporting_dev_info *, struct scatterlist *, unsigned)
 * (since 5.7).
 */
int on_report_enter(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 vb = ARG1(ctx) - VB_PR_DEV_INFO, sg = ARG2(ctx), vmemmap = vmemmap_base();
	u32 entries = ARG3(ctx), i;
	struct slot *slot = begin_send(&thread, CALLER_REPORTING);

	count(GUEST_HIT_REPORT);
	if (!slot)
		return 0;
	bpf_probe_read_kernel(&slot->request.vq, 8, (void *)(vb + VB_REPORTING_VQ));
	slot->request.wire = WIRE_SCATTERLIST;
	slot->request.queue = QUEUE_REPORTING;
	slot->request.total = entries;
	for (i = 0; i < AEROSTAT_ENTRIES; i++) {
		u64 gpa = 0, length_bytes = 0;

		/* Keeps clang from counting by another variable, whose bound the verifier cannot see. */
		asm volatile("" : "+r"(i));
		if (i >= entries || i >= AEROSTAT_ENTRIES)
			break;
		if (read_entry(sg + i * SG_BYTES, vmemmap, &gpa, &length_bytes)) {
			slot->request.flags |= FLAG_PAYLOAD_FAULT;
			break;
		}
		slot->request.payload.entry[i].gpa = gpa;
		slot->request.payload.entry[i].length_bytes = length_bytes;
		slot->request.filled = i + 1;
	}
	if (entries > AEROSTAT_ENTRIES)
		slot->request.flags |= FLAG_TRUNCATED;
	return 0;
}

int on_report_exit(CONTEXT *ctx) { return finish_send(); }
#endif

#if defined(TRACE_HINTS) || defined(TRACE_STATS)
/* A thread in one of the driver's other work functions: its queue, and the event under way there. */
struct worker {
	u64 vq;
	u32 hints;              /* each buffer is an event of its own */
	u32 filled;             /* a buffer was added and is not kicked yet */
	struct guest_event event;
};
BPF_HASH(workers, u64, struct worker, 16);

static __always_inline int begin_work(u64 vq_field, u32 hints)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct worker worker = {};

	bpf_probe_read_kernel(&worker.vq, 8, (void *)vq_field);
	worker.hints = hints;
	worker.event.tid = (u32)thread;
	workers.update(&thread, &worker);
	return 0;
}
#endif

#ifdef TRACE_HINTS
/* void report_free_page_func(struct work_struct *) (since 5.0): one run sends a burst of hints */
int on_hint_enter(CONTEXT *ctx)
{
	count(GUEST_HIT_HINT);
	return begin_work(ARG1(ctx) - VB_REPORT_FREE_PAGE_WORK + VB_FREE_PAGE_VQ, 1);
}

int on_hint_exit(CONTEXT *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();

	workers.delete(&thread);
	return 0;
}

static __always_inline struct worker *hinting(u64 vq)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct worker *worker = workers.lookup(&thread);

	/* An interrupt may use another device's queue in the same thread. */
	if (!worker || !worker->hints || worker->vq != vq)
		return 0;
	worker->event.send_ns = bpf_ktime_get_ns();
	worker->event.flags = 0;
	worker->filled = 1;
	return worker;
}

/*
 * int virtqueue_add_outbuf(vq, sg, num, data, gfp): the begin's or the end's command id, at `data`.
 * Every virtio device calls this and the next, so leave at once.
 */
int on_add_outbuf(CONTEXT *ctx)
{
	struct worker *worker = hinting(ARG1(ctx));
	u32 id = 0;

	if (!worker)
		return 0;
	count(GUEST_HIT_HINT_ID);
	if (bpf_probe_read_kernel(&id, 4, (void *)ARG4(ctx)))
		worker->event.flags = FLAG_PAYLOAD_FAULT;
	worker->event.kind = GUEST_EVENT_HINT_ID;
	worker->event.value = id;
	worker->event.length_bytes = 0;
	return 0;
}

/* int virtqueue_add_inbuf(vq, sg, num, data, gfp): one free block */
int on_add_inbuf(CONTEXT *ctx)
{
	struct worker *worker = hinting(ARG1(ctx));
	u64 gpa = 0, length_bytes = 0;

	if (!worker)
		return 0;
	count(GUEST_HIT_HINT_BLOCK);
	if (read_entry(ARG2(ctx), vmemmap_base(), &gpa, &length_bytes))
		worker->event.flags = FLAG_PAYLOAD_FAULT;
	worker->event.kind = GUEST_EVENT_HINT_BLOCK;
	worker->event.value = gpa;
	worker->event.length_bytes = length_bytes;
	return 0;
}
#endif
