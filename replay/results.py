"""What a replay measured, kept as JSON with its own format version (docs/results-format.md)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from replay.against import Against
from replay.environment import Environment
from replay.planning import Refused
from replay.rejections import Rejection
from replay.summary import Summary
from replay.watched import WatchedRun

RESULTS_FORMAT = "aerostat-results"
RESULTS_VERSION = "5.2"


@dataclass(frozen=True)
class TraceFacts:
    """Which trace was replayed. `name` is the bundle's name, without its directory.

    `rejected` is what the device model leaves out of its requests, or finds too much in them.
    """

    name: str
    session_id: str
    complete: bool
    lost_events: int
    requests: int
    pages: int
    memory_bytes: int
    rejected: tuple[Rejection, ...]

    @property
    def missing(self) -> str | None:
        """What it lacks, such as `misses 7 events`; None where it is whole."""
        told = [f"misses {self.lost_events:,} events"] if self.lost_events else []
        told += [] if self.complete else ["did not end as it should"]
        return " and ".join(told) or None


@dataclass(frozen=True)
class Settings:
    """How it was replayed.

    `thp` is never, madvise or always (`replay.residency.Thp`), empty on memory that takes none;
    `cpu` is the CPU of the executing thread, None where it ran free, and `resting_threads` slept on
    another. `touched_pages` are those that each run touched again after stage d: the guest had got
    them back by then, and they had memory behind them at first. `against` is the strategy that the
    others were set beside, None where there was none.
    """

    runs: int
    warmup: int
    watched_runs: int
    seed: int
    backing: str
    thp: str
    siblings: int
    resting_threads: int
    cpu: int | None
    memory_limit_bytes: int | None
    residency: str
    requests_replayed: int
    resident_bytes: int
    touched_pages: int
    cut_reason: str
    against: str | None = None


@dataclass(frozen=True)
class Fidelity:
    """How closely the traced VMM's own strategy, replayed, reproduces the trace.

    Operation counts are over the whole trace, even where memory was too small to replay it all.
    `ratio` is replayed over captured stage d; None where the two cannot be set side by side.
    """

    strategy: str
    captured_operations: int | None
    planned_operations: int
    exact: bool | None
    captured_discard_ns: int | None
    replayed_discard_ns: int | None
    ratio: float | None
    note: str


@dataclass(frozen=True)
class RingCounts:
    """What stage b did on the virtqueues.

    Args:
        kicks: Times that the driver notified the device; with EVENT_IDX a side that is still
            looking for more needs no notification, so a few less than requests now and then.
        interrupts: Times that the device notified the driver; the same holds.
        descriptors: That the device read; an indirect table's are among them.
        bytes: That the device read to know what the requests say: descriptors and content.
    """

    kicks: int
    interrupts: int
    descriptors: int
    bytes: int


@dataclass(frozen=True)
class Run:
    """One replay of the trace under one strategy in one fresh process.

    Args:
        order: Place of this run among all runs, warm-up runs included.
        send_ns: Stage b: every wire request sent over a virtqueue to a device, and answered.
        send_cpu_ns: CPU time of both threads.
        merge_ns: Sorting and merging what is named, by the driver under the range protocol, else by
            the device; 0 for a strategy that merges nothing.
        translate_ns: Stage c: the same requests decoded, every address looked up.
        discard_ns: Stage d: the plan's operations executed.
        floor_ns: The loop of stage d over the same operations without the system calls.
        calls: System calls made, those repeated because one stopped short included.
        failures: Operations that failed.
        huge_pages: 4 KiB pages that lay in huge pages when stage d began.
        gone_pages: Pages that read as zero because they were discarded.
        still_resident_pages: Of those, pages that still had memory behind them.
        lazy_pages: Pages that the kernel may take when it needs memory (MADV_FREE).
        sibling_pages: Pages of the memory that sibling threads read during stage d.
        preemptions: Times another thread was let run on the executing thread's CPU in stage d.
        touch_ns: Time to touch the pages again that the guest got back; None where there are none.
        touch_faults: Minor faults meanwhile.
    """

    order: int
    send_ns: int
    send_cpu_ns: int
    ring: RingCounts
    merge_ns: int
    merge_cpu_ns: int
    translate_ns: int
    translate_cpu_ns: int
    discard_ns: int
    discard_cpu_ns: int
    floor_ns: int
    calls: int
    failures: int
    first_errno: int
    minor_faults: int
    populate_ns: int
    huge_pages: int
    resident_before_pages: int
    resident_after_pages: int
    gone_pages: int
    still_resident_pages: int
    lazy_pages: int
    sibling_pages: int
    preemptions: int
    touch_ns: int | None
    touch_faults: int | None

    @property
    def freed_pages(self) -> int:
        """Resident pages before stage d less those after."""
        return self.resident_before_pages - self.resident_after_pages

    @property
    def total_ns(self) -> int:
        """Stages b, c and d, and merging."""
        return self.send_ns + self.merge_ns + self.translate_ns + self.discard_ns


@dataclass(frozen=True)
class CalibrationPoint:
    """One entry of the table that stage d was foretold from.

    Args:
        advice: `replay.backings.Advice`.
        ranges: Ranges that share a call; 1: one call each.
        state: What the call finds (`replay.cells.State`).
        far: Calls jump about; else each begins where the one before ended.
        pages: Length; 0 in `split`: what the call that splits takes more.
        samples_ns: Time of a call, or of a range, one sample a process.
    """

    advice: int
    ranges: int
    state: str
    far: bool
    pages: int
    samples_ns: tuple[float, ...]


@dataclass(frozen=True)
class FreeList:
    """What a page costs to free in calls of 2 MiB, over as much memory as a plan frees.

    It is not looked for beyond 4 GiB.

    Args:
        advice: Of the calls (`replay.backings.Advice`).
        pages: 4 KiB pages that can be freed before they cost more; 0 where all cost the same.
        within_ns: ns of a page up to there.
        beyond_ns: ns of a page after it.
    """

    advice: int
    pages: int
    within_ns: float
    beyond_ns: float


@dataclass(frozen=True)
class StrategyResult:
    """All runs of one strategy.

    `operations` are ranges, `calls` the system calls that they share, `threads` those that make
    them; `projected_send_ns` is stage b at the trace's own pace, `predicted_discard_ns` stage d as
    foretold before the first run; None where it was not. `summary` is made of `runs`, for
    readers without statistics; None where there are none. `deployable` says that a device could do
    it: it looks at nothing that is still to come, and discards; None where results of format 5.0
    do not say.
    """

    name: str
    protocol: str
    operations: int
    calls: int
    threads: int
    bytes: int
    pages: int
    wire_requests: int
    wire_bytes: int
    translated_entries: int
    rejected_entries: int
    projected_send_ns: int | None
    predicted_discard_ns: int | None
    runs: tuple[Run, ...]
    warmups: tuple[Run, ...]
    watched: tuple[WatchedRun, ...]
    summary: Summary | None
    deployable: bool | None = None


@dataclass(frozen=True)
class Results:
    """A replay: one trace, one machine, several strategies, several runs of each.

    `refused` are the strategies that cannot work on this memory or this kernel, and why;
    `calibration` is what predictions were made from, empty where there are none, with `free_list`,
    what pages cost over much memory; None where little is freed. `against` is every strategy beside
    the one that `settings.against` names; None where none is named, or that one was refused.
    """

    created_utc: str
    aerostat_version: str
    trace: TraceFacts
    settings: Settings
    environment: Environment
    warnings: tuple[str, ...]
    fidelity: Fidelity | None
    strategies: tuple[StrategyResult, ...]
    refused: tuple[Refused, ...]
    calibration: tuple[CalibrationPoint, ...]
    free_list: FreeList | None
    against: tuple[Against, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """One JSON document; field names are keys, units stand at the end of keys."""
        head = {"format": RESULTS_FORMAT, "version": RESULTS_VERSION}
        return head | dataclasses.asdict(self)
