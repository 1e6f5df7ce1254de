/*
 * Host side, fifth part: the end of a call that may be a process_madvise, of which each piece is recorded
 * as a call. Its begin is that of every other call.
 */
/* process_madvise(pidfd, vector, pieces, advice, flags): result is the bytes advised. */
static __always_inline void open_vector(struct inflight *in, struct outcome *end, u64 bytes)
{
	in->discard_bytes += bytes;
	in->vector = in->address;
	in->vector_pieces = in->length_bytes;
	in->vector_bytes = bytes;
	in->vector_end = *end;
	in->vector_end.pieces = in->length_bytes;
}

static __always_inline void lose_pieces(struct host_vm *vm, struct inflight *in)
{
	count(vm, HOST_LOST_PIECES, in->vector_pieces);
	in->vector_pieces = 0;
}

/* Record the vector's next pieces, as many as one run of a program looks at. */
static __always_inline void add_pieces(struct host_vm *vm, struct inflight *in)
{
	u32 i, tgid = bpf_get_current_pid_tgid() >> 32;
	struct host_memory *memory = memories.lookup(&tgid);

	for (i = 0; i < AEROSTAT_PIECES && in->vector_pieces; i++) {
		u64 piece[2] = {};

		if (!in->vector_bytes) {
			in->vector_pieces = 0; /* those that are left were not advised */
			return;
		}
		if (bpf_probe_read_user(piece, 16, (void *)in->vector)) {
			lose_pieces(vm, in);
			return;
		}
		in->vector += 16;
		in->vector_pieces--;
		in->address = piece[0];
		in->length_bytes = piece[1] < in->vector_bytes ? piece[1] : in->vector_bytes;
		in->vector_bytes -= in->length_bytes;
		if (in->token == NO_REQUEST && (!memory || !in_guest_memory(memory, in->address)))
			continue;
		/* The first piece carries the vector's size and time. */
		add_call(vm, in, &in->vector_end);
		in->vector_end.pieces = 0;
		in->vector_end.took_ns = 0;
		in->vector_end.later = 1;
	}
}

/* As call_exit, where the call may be a vector; 1 where pieces of it are left for another run. */
static __always_inline int vector_exit(long result)
{
	struct outcome end = {};
	struct inflight *in;
	struct host_vm *vm = ending_call(&in, &end);

	if (!vm)
		return 0;
	if (!in->vector_pieces) {
		count_call(vm, in, &end, result);
		if (in->call != CALL_PROCESS_MADVISE || end.error) {
			end_call(vm, in, &end);
			return 0;
		}
		open_vector(in, &end, result);
	}
	add_pieces(vm, in);
	if (in->vector_pieces)
		return 1;
	in->enter_ns = 0;
	return 0;
}

/* The kernel did not run the program again: what is left of the vector is lost, and counted. */
static __always_inline int end_vector(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct inflight *in = inflight.lookup(&thread);
	struct host_vm *vm = vm_of(thread);

	if (in && vm) {
		lose_pieces(vm, in);
		in->enter_ns = 0;
	}
	return 0;
}

/*
 * A program that has to run again calls itself: user space puts each into the array that is named for
 * it. The kernel allows 32 such calls in a row, and takes no more than 1024 pieces (UIO_MAXIOV).
 */
BPF_PROG_ARRAY(again_on_vector_exit, 1);
BPF_PROG_ARRAY(again_on_vector_fexit, 1);
BPF_PROG_ARRAY(again_on_vector_kretprobe, 1);
BPF_PROG_ARRAY(again_on_raw_exit, 1);

int on_vector_exit(struct sys_exit *ctx)
{
	if (!vector_exit(ctx->result))
		return 0;
	again_on_vector_exit.call(ctx, 0);
	return end_vector();
}

int on_vector_fexit(u64 *ctx)
{
	if (!vector_exit(ctx[1]))
		return 0;
	again_on_vector_fexit.call(ctx, 0);
	return end_vector();
}

int on_vector_kretprobe(struct pt_regs *ctx)
{
	if (!vector_exit(PT_REGS_RC(ctx)))
		return 0;
	again_on_vector_kretprobe.call(ctx, 0);
	return end_vector();
}

int on_raw_exit(struct bpf_raw_tracepoint_args *ctx)
{
	if (!vector_exit(ctx->args[1]))
		return 0;
	again_on_raw_exit.call(ctx, 0);
	return end_vector();
}
