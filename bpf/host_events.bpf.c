/*
 * Host side, last part: what QEMU itself says of the balloon and the VM, at functions that it exports.
 *
 * Only the latest few and a count are kept: a guest can drive the rate of `actual`, so these take no
 * room in a ring, and user space reads them whenever it drains.
 */
static __always_inline int note(int which, u64 value)
{
	struct host_vm *vm = vm_of(bpf_get_current_pid_tgid());

	struct host_event *event;
	u32 place;

	if (!vm)
		return 0;
	event = &vm->events[which];
	place = event->count % AEROSTAT_LATEST;
	event->value[place] = value;
	event->ts_ns[place] = bpf_ktime_get_ns();
	event->count++;
	return 0;
}

/* void qmp_balloon(int64_t target, Error **): the target in bytes (softmmu/balloon.c, since 0.14) */
int on_target(struct pt_regs *ctx) { return note(EVENT_TARGET, PT_REGS_PARM1(ctx)); }

/* void qapi_event_send_balloon_change(int64_t actual): when the guest writes `actual` (since 1.2) */
int on_actual(struct pt_regs *ctx) { return note(EVENT_ACTUAL, PT_REGS_PARM1(ctx)); }

/* void runstate_set(RunState): qapi/run-state.json (since 0.14) */
int on_run_state(struct pt_regs *ctx) { return note(EVENT_RUN_STATE, (u32)PT_REGS_PARM1(ctx)); }
