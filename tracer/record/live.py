"""What a recorder knows of one VM at this moment: for `top`, metrics and the flight recorder."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.trace.schema import PAGE_BYTES, Queue


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A request that has begun and not ended.

    Attributes:
        queues: Those that it may be of.
        begin_ns: When it was popped, CLOCK_MONOTONIC.
    """

    queues: tuple[Queue, ...]
    begin_ns: int


@dataclass(frozen=True, slots=True)
class VmStats:
    """Sums since the VM's probes were attached; None where not observed.

    Attributes:
        ts_ns: When, CLOCK_MONOTONIC.
        memory_bytes: The guest's memory with an empty balloon.
        actual_bytes: The guest's memory less the balloon, as the device has it.
        target_bytes: What was asked of the guest, in the same terms.
        pages: 4 KiB pages named by requests, by queue.
        requests: Virtqueue buffers, by queue.
        runs: Runs of adjacent pages in those requests.
        discard_calls: System calls that gave memory back, or advised on it.
        discard_ns: Time in them.
        discard_bytes: Bytes they covered.
        busy_ns: Time from taking to returning requests: translate and discard.
        longest_ns: The longest of these.
        lost: Events lost, by cause.
        written_bytes: Bytes of the trace on disk.
        probe_ns: What the probes themselves have cost the VM, as measured at attach.
        queues: Whose requests can be seen at all; none where only system calls can.
    """

    name: str
    pid: int | None
    uuid: str | None
    ts_ns: int
    memory_bytes: int | None
    actual_bytes: int | None
    target_bytes: int | None
    pages: dict[Queue, int]
    requests: dict[Queue, int]
    runs: int
    discard_calls: int | None
    discard_ns: int | None
    discard_bytes: int | None
    busy_ns: int
    longest_ns: int
    lost: dict[str, int]
    written_bytes: int
    probe_ns: float | None
    queues: frozenset[Queue] = frozenset(Queue)

    @property
    def taken_bytes(self) -> int:
        """What the guest has taken back, by the pages that deflates named, less what it gave."""
        deflated, inflated = (self.pages.get(q, 0) for q in (Queue.DEFLATE, Queue.INFLATE))
        return (deflated - inflated) * PAGE_BYTES
