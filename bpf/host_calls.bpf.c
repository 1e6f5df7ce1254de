/*
 * Host side, fourth part: the system calls that give memory back, of threads between a pop and a push,
 * and of every thread of a VMM whose handlers are not known; of the latter only those on guest memory.
 * Each call can be reached by fentry, kprobe, classic and raw tracepoint (tracer/sites/probes.py).
 */
#define FALLOC_PUNCH_HOLE 2
#define MMAP_FIXED 0x10

/* Arguments of one call: what and where. */
struct arguments {
	u64 address;            /* or file offset, or address of the vector */
	u64 length_bytes;       /* or pieces of the vector */
	s32 advice;
	u32 call;
	u32 fd;
};

static __always_inline int in_guest_memory(struct host_memory *memory, u64 address)
{
	int i;

#pragma unroll
	for (i = 0; i < AEROSTAT_REGIONS; i++)
		if (address >= memory->begin[i] && address < memory->end[i])
			return 1;
	return 0;
}

static __always_inline int is_guest_file(struct host_memory *memory, u32 fd)
{
	int i;

#pragma unroll
	for (i = 0; i < AEROSTAT_REGIONS; i++)
		if (memory->fd_valid[i] && memory->fd[i] == fd)
			return 1;
	return 0;
}

static __always_inline int is_on_guest_memory(struct host_memory *memory, struct arguments *arguments)
{
	if (arguments->call == CALL_PROCESS_MADVISE)
		return 1;       /* its pieces are looked at one by one */
	if (arguments->call == CALL_FALLOCATE)
		return (arguments->advice & FALLOC_PUNCH_HOLE) && is_guest_file(memory, arguments->fd);
	return in_guest_memory(memory, arguments->address);
}

/* A thread without a request, new or known: 0 where its call is not to be recorded. */
static __always_inline struct inflight *begin_call(u64 *thread, struct inflight *in,
						   struct arguments *arguments)
{
	struct host_vm *vm = vm_of(*thread);
	struct host_memory *memory;
	u32 tgid = *thread >> 32;

	if (!vm || !(vm->flags & VM_ALL_CALLS))
		return 0;
	memory = memories.lookup(&tgid);
	if (!memory)
		return 0;
	if (!is_on_guest_memory(memory, arguments)) {
		count(vm, HOST_OUTSIDE_CALLS, 1);
		return 0;
	}
	return in ? in : open_thread(thread, vm, HOST_LOST_THREADS);
}

/* Calls are probed for every process or none, so a VM whose own are not wanted is passed over here. */
static __always_inline int call_enter(struct arguments arguments)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct inflight *in = inflight.lookup(&thread);

	if (in && in->no_calls)
		return 0;
	if (!in || in->token == NO_REQUEST)
		in = begin_call(&thread, in, &arguments);
	if (!in)
		return 0;
	in->address = arguments.address;
	in->length_bytes = arguments.length_bytes;
	in->advice = arguments.advice;
	in->call = arguments.call;
	in->fd = arguments.fd;
	in->vector_pieces = 0;
	in->enter_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline void count_call(struct host_vm *vm, struct inflight *in, struct outcome *end,
				       long result)
{
	end->took_ns = end->now - in->enter_ns;
	end->error = result < 0 && result >= -4095 ? -result : 0;
	count(vm, HOST_HIT_CALL + (in->call & (CALLS - 1)), 1);
	in->discard_calls++;
	in->discard_ns += end->took_ns;
}

static __always_inline void end_call(struct host_vm *vm, struct inflight *in, struct outcome *end)
{
	if (!end->error)
		in->discard_bytes += in->length_bytes;
	add_call(vm, in, end);
	in->enter_ns = 0;
}

/* The call of this thread that ends now, and its VM; 0 where none is recorded. */
static __always_inline struct host_vm *ending_call(struct inflight **in, struct outcome *end)
{
	u64 thread = bpf_get_current_pid_tgid();

	*in = inflight.lookup(&thread);
	if (!*in || !(*in)->enter_ns)
		return 0;
	end->now = bpf_ktime_get_ns();
	return vm_of(thread);
}

static __always_inline int call_exit(long result)
{
	struct outcome end = {};
	struct inflight *in;
	struct host_vm *vm = ending_call(&in, &end);

	if (!vm)
		return 0;
	count_call(vm, in, &end, result);
	end_call(vm, in, &end);
	return 0;
}

static __always_inline struct arguments madvise_of(u64 *a)
{
	return (struct arguments){ a[0], a[1], a[2], CALL_MADVISE, 0 };
}

static __always_inline struct arguments fallocate_of(u64 *a)
{
	return (struct arguments){ a[2], a[3], a[1], CALL_FALLOCATE, a[0] };
}

static __always_inline struct arguments process_madvise_of(u64 *a)
{
	return (struct arguments){ a[1], a[2], a[3], CALL_PROCESS_MADVISE, a[0] };
}

static __always_inline struct arguments mmap_of(u64 *a)
{
	return (struct arguments){ a[0], a[1], a[3], CALL_MMAP, 0 };
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

static __always_inline void copy_arguments(u64 *to, struct sys_enter *ctx)
{
	to[0] = ctx->args[0];
	to[1] = ctx->args[1];
	to[2] = ctx->args[2];
	to[3] = ctx->args[3];
}

int on_madvise_enter(struct sys_enter *ctx)
{
	u64 a[4];

	copy_arguments(a, ctx);
	return call_enter(madvise_of(a));
}

int on_fallocate_enter(struct sys_enter *ctx)
{
	u64 a[4];

	copy_arguments(a, ctx);
	return call_enter(fallocate_of(a));
}

int on_process_madvise_enter(struct sys_enter *ctx)
{
	u64 a[4];

	copy_arguments(a, ctx);
	return call_enter(process_madvise_of(a));
}

int on_mmap_enter(struct sys_enter *ctx)
{
	u64 a[4];

	if (!(ctx->args[3] & MMAP_FIXED))
		return 0;
	copy_arguments(a, ctx);
	return call_enter(mmap_of(a));
}

int on_call_exit(struct sys_exit *ctx) { return call_exit(ctx->result); }

/* The kernel's own functions, long __x64_sys_NAME(const struct pt_regs *): user registers (since 4.17). */
static __always_inline void read_arguments(u64 *a, u64 registers)
{
	struct pt_regs *regs = (struct pt_regs *)registers;

	bpf_probe_read_kernel(&a[0], 8, &regs->di);
	bpf_probe_read_kernel(&a[1], 8, &regs->si);
	bpf_probe_read_kernel(&a[2], 8, &regs->dx);
	bpf_probe_read_kernel(&a[3], 8, &regs->r10);
}

static __always_inline int kernel_enter(u64 registers, u32 call)
{
	u64 a[4] = {};

	read_arguments(a, registers);
	if (call == CALL_MADVISE)
		return call_enter(madvise_of(a));
	if (call == CALL_FALLOCATE)
		return call_enter(fallocate_of(a));
	if (call == CALL_PROCESS_MADVISE)
		return call_enter(process_madvise_of(a));
	return a[3] & MMAP_FIXED ? call_enter(mmap_of(a)) : 0;
}

int on_madvise_fentry(u64 *ctx) { return kernel_enter(ctx[0], CALL_MADVISE); }
int on_fallocate_fentry(u64 *ctx) { return kernel_enter(ctx[0], CALL_FALLOCATE); }
int on_process_madvise_fentry(u64 *ctx) { return kernel_enter(ctx[0], CALL_PROCESS_MADVISE); }
int on_mmap_fentry(u64 *ctx) { return kernel_enter(ctx[0], CALL_MMAP); }
int on_call_fexit(u64 *ctx) { return call_exit(ctx[1]); }

int on_madvise_kprobe(struct pt_regs *ctx) { return kernel_enter(PT_REGS_PARM1(ctx), CALL_MADVISE); }
int on_fallocate_kprobe(struct pt_regs *ctx) { return kernel_enter(PT_REGS_PARM1(ctx), CALL_FALLOCATE); }
int on_process_madvise_kprobe(struct pt_regs *ctx)
{
	return kernel_enter(PT_REGS_PARM1(ctx), CALL_PROCESS_MADVISE);
}
int on_mmap_kprobe(struct pt_regs *ctx) { return kernel_enter(PT_REGS_PARM1(ctx), CALL_MMAP); }
int on_call_kretprobe(struct pt_regs *ctx) { return call_exit(PT_REGS_RC(ctx)); }

/* Raw tracepoints sys_enter and sys_exit: the fallback, on the path of every system call. */
int on_raw_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u64 nr = ctx->args[1];
	u32 call;

	if (nr == NR_MADVISE)
		call = CALL_MADVISE;
	else if (nr == NR_FALLOCATE)
		call = CALL_FALLOCATE;
	else if (nr == NR_PROCESS_MADVISE)
		call = CALL_PROCESS_MADVISE;
	else if (nr == NR_MMAP)
		call = CALL_MMAP;
	else
		return 0;
	return kernel_enter(ctx->args[0], call);
}
