"""What a host trace's manifest says beside its rows: losses, counters, probes, the VM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tracer.engine.attach import Attachment
from tracer.engine.decode import HANDLER_QUEUES
from tracer.engine.host_engine import HostEngine
from tracer.engine.vm_probes import Count, Event, Quota, VmProbes
from tracer.host_side.host_rows import HostRows
from tracer.record.machine import probe_record
from tracer.sites.host_probes import QemuSites
from tracer.sites.probes import HANDLER_WORDS, host_request_points
from tracer.trace.manifest import ProbeRecord, VmInfo
from tracer.trace.schema import Call, Queue
from tracer.vms.vmm import Vmm

_ENDS = {"pop": Count.HIT_POP, "push": Count.HIT_PUSH}
"""The first of the counts that a handler's points have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a VM is recorded.

    Attributes:
        detail: requests, discards or calls.
        ring_bytes: Size of its ring of calls.
        requests_ring_bytes: Size of its ring of requests.
        quota: What it may put into them in a second.
        actual_bytes: Reads the device's `actual` over QMP, where the caller has a connection.
        name: Name for the manifest; the VMM's own where None.
        scenario: What is being done to the VM, for the manifest.
        counts_only: Its figures alone are wanted: no scan of its memory, no samples.
    """

    detail: str
    ring_bytes: int
    requests_ring_bytes: int
    quota: Quota
    actual_bytes: Callable[[], int] | None = None
    name: str | None = None
    scenario: str | None = None
    counts_only: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """One VM, and how it is recorded.

    Attributes:
        vmm: Its process.
        sites: Its balloon handlers; None where they are not known.
        settings: How it is recorded.
        why_no_sites: Why its handlers are not known.
    """

    vmm: Vmm
    sites: QemuSites | None
    settings: Settings
    why_no_sites: str = ""

    @property
    def calls_observed(self) -> bool:
        """Whether its discard calls are recorded: always, where there is nothing else."""
        return self.settings.detail != "requests" or self.sites is None

    @property
    def name(self) -> str:
        """What to call it."""
        return self.settings.name or self.vmm.name or f"pid {self.vmm.pid}"

    def unreached(self) -> list[Attachment]:
        """Name the points that cannot be probed for want of the handlers' places."""
        if self.sites is not None:
            return []
        points = host_request_points(range(len(HANDLER_WORDS)))
        return [Attachment(point, None, self.why_no_sites) for point in points]

    def info(self) -> VmInfo:
        """Describe the VM for the manifest."""
        vmm, sites = self.vmm, self.sites
        return VmInfo(
            name=self.settings.name or vmm.name,
            uuid=vmm.uuid,
            pid=vmm.pid,
            exe=vmm.exe.name,
            build_id=sites.build_id if sites else None,
            vmm=vmm.kind,
            manager=vmm.manager,
            vmm_version=sites.version if sites else None,
            memory_bytes=vmm.memory_bytes,
            vcpus=vmm.vcpus,
            accel=vmm.accel,
        )


class Account:
    """Reads the counts of one VM's probes.

    Args:
        engine: The programs of this host.
        probes: The VM's.
        rows: What was found wrong with its records.
        sites: Where its uprobes are.
        attached: What became of every probe point.
    """

    def __init__(
        self,
        engine: HostEngine,
        probes: VmProbes,
        rows: HostRows,
        sites: QemuSites | None,
        attached: Sequence[Attachment] = (),
    ) -> None:
        self._engine, self._probes, self._rows, self._sites = engine, probes, rows, sites
        self.attached = attached

    def lost(self) -> dict[tuple[str, str], int]:
        """Count what is missing, by stream and cause."""
        counts, rows = self._probes.counts(), self._rows
        return {
            ("requests", "ring"): counts[Count.LOST_REQUESTS],
            ("requests", "quota"): counts[Count.QUOTA_REQUESTS],
            ("requests", "partial"): rows.partial + counts[Count.LOST_PARTS],
            ("requests", "stranger"): rows.strangers,
            ("calls", "ring"): counts[Count.LOST_CALLS] + counts[Count.LOST_THREADS],
            ("calls", "quota"): counts[Count.QUOTA_CALLS],
            ("calls", "partial"): counts[Count.LOST_PIECES],
        }

    def refused(self) -> int:
        """Count the records that the VM's quota refused."""
        counts = self._probes.counts()
        return counts[Count.QUOTA_REQUESTS] + counts[Count.QUOTA_CALLS]

    def counters(self) -> dict[str, int]:
        """Sum up for the manifest."""
        counts, lost = self._probes.counts(), self.lost()
        sums = {
            f"lost_{stream}": sum(count for (name, _), count in lost.items() if name == stream)
            for stream in ("requests", "calls")
        }
        return sums | {
            "lost_inflate_pages": counts[Count.LOST_INFLATE_PAGES],
            "lost_deflate_pages": counts[Count.LOST_DEFLATE_PAGES],
            "lost_other_pages": counts[Count.LOST_OTHER_PAGES],
            "outside_calls": counts[Count.OUTSIDE_CALLS],
            "lone_pushes": counts[Count.LONE_PUSHES],
        }

    def probe_records(self) -> list[ProbeRecord]:
        """Say of every probe point how it was reached, its cost, and how often it was hit."""
        hits = self._hits()
        return [self._record(attachment, hits) for attachment in self.attached]

    def probe_ns(self) -> float | None:
        """What the probes have cost the VM so far, of those whose cost was measured."""
        costs = [
            record.cost_ns * record.hits
            for record in self.probe_records()
            if record.cost_ns is not None and record.hits is not None
        ]
        return sum(costs) if costs else None

    def queues(self) -> frozenset[Queue]:
        """Name the queues whose requests are seen."""
        attached = {each.point.name for each in self.attached if each.way is not None}
        found = [
            queue
            for word, queue in zip(HANDLER_WORDS, HANDLER_QUEUES, strict=True)
            if f"{word}-pop" in attached
        ]
        return frozenset([*found, *([Queue.DEFLATE] if Queue.INFLATE in found else [])])

    def _hits(self) -> dict[str, int]:
        counts, events = self._probes.counts(), self._probes.events()
        hits = {
            "target": events[Event.TARGET].count,
            "actual": events[Event.ACTUAL].count,
            "run-state": events[Event.RUN_STATE].count,
        }
        for attachment in self.attached:
            name = attachment.point.name
            word, _, end = name.rpartition("-")
            if end in ("enter", "exit"):
                hits[name] = counts[Count.HIT_CALL + Call[word.upper()]]
            elif end in _ENDS:
                hits[name] = counts[_ENDS[end] + HANDLER_WORDS.index(word)]
        return hits

    def _record(self, attachment: Attachment, hits: dict[str, int]) -> ProbeRecord:
        others_ns = None if attachment.way is None else self._engine.costs.others_ns(attachment.way)
        return replace(
            probe_record(
                attachment,
                self._engine.hit_ns(attachment, self._sites),
                hits.get(attachment.point.name),
            ),
            bystander_ns=others_ns,
        )
