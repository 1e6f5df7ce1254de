"""The recorder's own probes around a replay's calls: what `replay --fidelity --probed` attaches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa

from replay.probed import Held, ProbeUse
from tracer.engine.attach import Attachment
from tracer.engine.decode_calls import host_calls
from tracer.engine.host_engine import HostEngine
from tracer.engine.privilege import LOAD, require, require_first_pid_namespace
from tracer.engine.pump import PumpedRing
from tracer.engine.ring import Records
from tracer.engine.ring_size import longest_wait_s, ring_bytes
from tracer.engine.vm_probes import Count, Quota, Target, VmProbes
from tracer.sites.probes import HOST_CALL_POINTS, Point
from tracer.trace.errors import CaptureIncompleteError
from tracer.trace.schema import Call

_LOST = (Count.LOST_CALLS, Count.QUOTA_CALLS, Count.LOST_THREADS, Count.LOST_PIECES)


def require_probes() -> None:
    """Refuse before anything is run where a replay cannot be recorded.

    Raises:
        MissingPrivilegeError: A capability or BCC is missing, or the kernel refuses the programs.
    """
    require_first_pid_namespace()
    require("the replay", LOAD)
    HostEngine(calls=False).close()


@contextmanager
def attached(ways: Mapping[str, str], detail: str) -> Iterator[ReplayRecorder]:
    """Attach the probes of system calls while the context is open.

    Args:
        ways: For each point, the kind of probe to try before any other.
        detail: `calls`, or any other for calls merged in the kernel.

    Raises:
        MissingPrivilegeError: As `require_probes`, or no way to a point works.
    """
    with HostEngine(calls=False) as engine:
        engine.watch_calls(tuple(_preferring(point, ways) for point in HOST_CALL_POINTS))
        with ReplayRecorder(engine, ways, detail) as recorder:
            yield recorder


def _preferring(point: Point, ways: Mapping[str, str]) -> Point:
    """The point with one kind of probe before those that cost less, and not to be done without."""
    wanted = ways.get(point.name)
    tried = sorted(point.ways, key=lambda way: way.kind.value != wanted)
    return replace(point, required=True, ways=tuple(tried))


class ReplayRecorder:
    """Records one thread after another; a `replay.probed.Recorder`.

    Args:
        engine: The programs, with the probes attached.
        ways: Kinds of probes that were asked for, by point.
        detail: See `attached`.
    """

    def __init__(self, engine: HostEngine, ways: Mapping[str, str], detail: str) -> None:
        self.probes = tuple(_use(each, ways) for each in engine.call_attachments)
        self.probe_ns = engine.costs.call_pair_ns
        self._engine, self._detail = engine, detail
        self._held = Held(0, 0, 0, 0)
        self._vm: VmProbes | None = None
        self._ring: PumpedRing | None = None
        self._resources = ExitStack()

    def __enter__(self) -> ReplayRecorder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()

    def begin(self, held: Held) -> None:
        """Record a thread's calls from now on, as if each were made for a guest's request."""
        size_bytes = ring_bytes(self._detail)
        target = Target(
            pid=held.pid,
            sites=None,
            spans=(),
            descriptors=(),
            merge=self._detail != "calls",
            ring_bytes=size_bytes,
            requests_ring_bytes=os.sysconf("SC_PAGE_SIZE"),
            quota=Quota(),
        )
        self._held, self._vm = held, self._engine.add(target)
        self._resources.callback(self._vm.close)
        pump, wait_s = self._engine.pump, longest_wait_s(self._detail, size_bytes)
        self._ring = pump.add(self._vm.calls, wait_s)
        self._resources.callback(pump.remove, self._ring)
        # Not `attach`: that would have every thread's calls on guest memory recorded.
        self._vm.threads.enter(held.tid)

    def read(self) -> pa.Table:
        """Take what was recorded since, as rows of `calls`; `gpa` is the offset in its memory."""
        assert self._ring is not None
        return self._rows(self._ring.read())

    def end(self) -> pa.Table:
        """Take the rest.

        Raises:
            CaptureIncompleteError: A call was lost.
        """
        assert self._vm is not None
        left_open = self._vm.stop()
        rows = pa.concat_tables([self.read(), self._rows(left_open)])
        counts = self._vm.counts()
        self._resources.close()
        if lost := sum(counts[cause] for cause in _LOST):
            raise CaptureIncompleteError(
                f"{lost:,} calls of the replay were lost as it was recorded",
                reason="nothing is set beside the trace that is not whole",
                remedy="run it again while the machine does less",
            )
        return rows

    def _rows(self, records: Records) -> pa.Table:
        address = records["address"]
        in_file = records["call"] == Call.FALLOCATE  # whose address is an offset already
        offset = np.where(in_file, address, address - np.uint64(self._held.address))
        ours = offset < np.uint64(self._held.size_bytes)
        gpa = np.where(ours, offset.view(np.int64), -1)
        batch = host_calls(records, np.full(len(records), -1), gpa)
        return pa.Table.from_batches([batch])


def _use(attachment: Attachment, ways: Mapping[str, str]) -> ProbeUse:
    assert attachment.way is not None  # all of them are required
    recorded = ways.get(attachment.point.name)
    here = attachment.way.kind.value
    return ProbeUse(
        point=attachment.point.name,
        way=here,
        recorded_way=recorded,
        reason=attachment.reason if recorded not in (None, here) else "",
    )
