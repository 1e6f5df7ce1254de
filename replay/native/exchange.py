"""Stage b executed: requests through virtqueues in shared memory, from one thread to another."""

from typing import Any

import numpy as np

from replay.native.binding import (
    Arguments,
    array,
    check,
    check_starts,
    load,
    map_struct,
    refused,
)
from replay.native.types import (
    Agreed,
    Exchange,
    NativeError,
    Outcome,
    Served,
    Service,
    Translation,
    WireRequests,
)

DESCRIPTOR_BYTES = 16
DEFAULT = Agreed()


def exchange(
    sent: WireRequests, agreed: Agreed = DEFAULT, service: Service | None = None
) -> Exchange:
    """Send every request from this thread, the driver's, to a device's thread, and wait for it.

    Both sides do what Linux's driver and a VMM do with a split virtqueue, one for each balloon
    queue; an eventfd stands for each notification. The device believes nothing that the ring says.

    Args:
        sent: What to send; no request may be larger than its protocol's driver sends.
        agreed: Features and CPUs.
        service: What the device does with each request before it gives it back; None: nothing, so
            that the wall time is stage b alone.

    Raises:
        NativeError: A request that no driver sends, or an operation that must not be carried out;
            or the kernel refused memory, a thread or an eventfd. Then nothing was sent.
    """
    ffi, lib = load()
    count = len(sent.form)
    check_starts(sent.wire, sent.start, count)
    if not len(sent.form) == len(sent.queue) == len(sent.wait):
        raise ValueError("the columns of requests differ in length")
    columns = [
        array(ffi, column, np.uint8) for column in (sent.wire, sent.form, sent.queue, sent.wait)
    ]
    start = array(ffi, sent.start, np.uint64)
    requests = ffi.new("struct aero_sent *", [columns[0], start, *columns[1:], count])
    if (bad := lib.aero_sendable(requests)) >= 0:
        raise _unsendable(sent, bad)
    cpus = ffi.NULL if agreed.cpus is None else ffi.new("int[2]", list(agreed.cpus))
    features = ffi.new("struct aero_agreed *", [agreed.event_idx, agreed.indirect, cpus])
    # Written once, so that no page of them is faulted in while the clock runs.
    received = np.full(max(int(sent.start[-1]), 1), 0xA5, np.uint8)
    received_start = np.full(count + 1, 1, np.uint64)
    out = ffi.new("struct aero_exchanged *")
    device = None if service is None else _Device(service, count)
    error = lib.aero_exchange(
        requests,
        features,
        ffi.NULL if device is None else device.struct,
        array(ffi, received, np.uint8),
        array(ffi, received_start, np.uint64),
        out,
    )
    if error and service is not None and out.outcome.first_failed >= 0:
        raise refused(service.operations, out.outcome.first_failed)
    check(error, "cannot send requests through virtqueues")
    return Exchange(
        wall_ns=out.wall_ns,
        driver_cpu_ns=out.driver_cpu_ns,
        device_cpu_ns=out.device_cpu_ns,
        requests=out.buffers,
        kicks=out.kicks,
        interrupts=out.interrupts,
        descriptors=out.descriptors,
        ring_bytes=out.payload_bytes + DESCRIPTOR_BYTES * out.descriptors,
        written_bytes=out.written_bytes,
        refused=out.refused,
        received=received[: int(received_start[-1])],
        received_start=received_start,
        served=None if device is None else device.served(out),
    )


class _Device:
    """Keeps the C view of a service alive, and reads what came of it."""

    def __init__(self, service: Service, requests: int) -> None:
        ffi = load()[0]
        if len(service.op_end) != requests:
            raise ValueError("op_end must have one element a request")
        if requests and (np.diff(service.op_end, prepend=0) < 0).any():
            raise ValueError("op_end must rise")
        if (int(service.op_end[-1]) if requests else 0) != len(service.operations):
            raise ValueError("op_end must end with the last operation")
        self.failed = np.zeros(len(service.operations), np.uint8)
        self._arguments = Arguments(service.memory, service.operations, service.rules)
        self._regions = map_struct(service.regions)
        with self._arguments as (memory, operations, rules):
            self._held = [
                self._regions[1],
                memory,
                operations,
                rules,
                array(ffi, service.op_end, np.int64),
                array(ffi, self.failed, np.uint8),
            ]
        self.struct = ffi.new("struct aero_service *", self._held)

    def served(self, out: Any) -> Served:
        """Read `struct aero_exchanged`."""
        found, outcome = out.translation, out.outcome
        return Served(
            out.translate_ns,
            out.discard_ns,
            Translation(
                out.translate_ns, 0, found.entries, found.pages, found.rejected, found.checksum
            ),
            Outcome(
                outcome.wall_ns,
                0,
                outcome.calls,
                out.minor_faults,
                out.preemptions,
                outcome.bytes,
                outcome.failures,
                outcome.first_failed if outcome.failures else None,
                outcome.first_errno,
                self.failed,
            ),
        )


def _unsendable(sent: WireRequests, index: int) -> NativeError:
    size_bytes = int(sent.start[index + 1] - sent.start[index])
    return NativeError(
        f"request {index} of {len(sent.form)} cannot be sent, and none was",
        reason=f"{size_bytes} bytes of form {sent.form[index]} on queue {sent.queue[index]}: more"
        " than its driver sends in one request, not whole items, nothing, or not the queue's form",
        remedy="let replay.sending make requests of a plan",
    )
