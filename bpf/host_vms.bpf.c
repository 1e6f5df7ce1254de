/*
 * Host side, first part: the VMs that are recorded, their rings, quotas and counts.
 *
 * One set of programs serves every VM of the host. A VM is known by its process (tgid); it has a pair
 * of rings and a quota of its own, so a guest that floods its VMM's queues costs no other VM an event.
 * tracer/engine/loader.py joins the parts host_*.bpf.c to one source, in the order given in host_probes.py.
 */
#include <linux/types.h>
#include <uapi/linux/ptrace.h>
#include "records.h"

/* The rings' type; the real ones are made per VM by user space (array of maps, since 5.8). */
BPF_RINGBUF_OUTPUT(ring_of_requests, 1);
BPF_RINGBUF_OUTPUT(ring_of_calls, 1);
BPF_ARRAY_OF_MAPS(requests, "ring_of_requests", MAX_VMS);
BPF_ARRAY_OF_MAPS(calls, "ring_of_calls", MAX_VMS);

BPF_HASH(vms, u32, struct host_vm, MAX_VMS);
BPF_HASH(memories, u32, struct host_memory, MAX_VMS);

#define SECOND_NS 1000000000LL

/* Atomic, but without a value: threads of one VM may count at once. */
static __always_inline void count(struct host_vm *vm, int which, u64 amount)
{
	__sync_fetch_and_add(&vm->counts[which], amount);
}

/*
 * Whether the VM may still put a record of this size into its ring in the second of `now`, which may
 * be older than the second that another thread has opened. Two threads may open a new one at once and
 * let a few records more through; the ring is bounded all the same.
 */
static __always_inline int admit(struct host_vm *vm, u64 now, u64 bytes)
{
	if ((s64)(now - vm->window_ns) >= SECOND_NS) {
		vm->window_ns = now;
		vm->window_records = 0;
		vm->window_bytes = 0;
	}
	if (vm->window_records >= vm->quota_records || vm->window_bytes + bytes > vm->quota_bytes)
		return 0;
	__sync_fetch_and_add(&vm->window_records, 1);
	__sync_fetch_and_add(&vm->window_bytes, bytes);
	return 1;
}

static __always_inline struct host_vm *vm_of(u64 thread)
{
	u32 tgid = thread >> 32;

	return vms.lookup(&tgid);
}
