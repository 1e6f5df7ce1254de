"""Results made by hand for tests of what reads them."""

from dataclasses import replace

import numpy as np

from replay.environment import Environment
from replay.pauses import encode
from replay.rejections import Rejection
from replay.results import (
    CalibrationPoint,
    Fidelity,
    Results,
    RingCounts,
    Run,
    Settings,
    StrategyResult,
    TraceFacts,
)
from replay.summary import summarise
from replay.watched import HugePages, MemorySamples, Pauses, WatchedRun

REJECTED = (Rejection("pages that are no guest memory", 3),)
MACHINE = Environment(
    kernel="6.1.0",
    architecture="x86_64",
    cpu_model="Test CPU",
    cpus=4,
    cpus_allowed=4,
    governor="performance",
    turbo="0",
    smt="off",
    mitigations="",
    thp="madvise",
    shmem_thp="never",
    memory_bytes=8 << 30,
    swap_bytes=0,
    available_bytes=7 << 30,
    load_1min=0.1,
    virtualisation="",
    python="3.11.2",
    libc="glibc 2.36",
    numpy="2.0",
    scipy="1.12",
    pyarrow="17",
)


def make_run(discard_ns: int, order: int = 0) -> Run:
    return Run(
        order=order,
        send_ns=100,
        send_cpu_ns=100,
        ring=RingCounts(1, 1, 1, 56),
        merge_ns=20,
        merge_cpu_ns=20,
        translate_ns=50,
        translate_cpu_ns=50,
        discard_ns=discard_ns,
        discard_cpu_ns=discard_ns,
        floor_ns=3,
        calls=10,
        failures=0,
        first_errno=0,
        minor_faults=0,
        populate_ns=9,
        huge_pages=0,
        resident_before_pages=20,
        resident_after_pages=10,
        gone_pages=10,
        still_resident_pages=0,
        lazy_pages=0,
        sibling_pages=0,
        preemptions=0,
        touch_ns=discard_ns,
        touch_faults=5,
    )


def make_watched(pauses_ns: list[int], order: int = 9) -> WatchedRun:
    """A watched run whose guest had 20 pages at first and 10 at the end."""
    top = max(pauses_ns)
    rss_bytes = tuple(pages << 12 for pages in (1020, 1015, 1010))
    return WatchedRun(
        order=order,
        discard_ns=sum(pauses_ns),
        pauses=Pauses(
            calls=len(pauses_ns),
            p50_ns=int(np.median(pauses_ns)),
            p90_ns=top,
            p99_ns=top,
            p999_ns=top,
            max_ns=top,
            worst_operation=pauses_ns.index(top),
            worst_pages=3,
            harness_ns=24,
            histogram=encode(np.array(pauses_ns, np.int64)),
        ),
        memory=MemorySamples((0, 500, 1000), (0, 5, 10), rss_bytes, None),
        huge=HugePages(1024, 512, 0, 512, 1, 1, 1),
    )


def make_strategy(name: str, discard_ns: list[int], operations: int = 10) -> StrategyResult:
    runs = tuple(make_run(time, order) for order, time in enumerate(discard_ns))
    return StrategyResult(
        name=name,
        protocol="pfns",
        operations=operations,
        calls=operations,
        threads=1,
        bytes=operations << 12,
        pages=operations,
        wire_requests=1,
        wire_bytes=4 * operations,
        translated_entries=operations,
        rejected_entries=0,
        projected_send_ns=None,
        predicted_discard_ns=None,
        runs=runs,
        warmups=(make_run(discard_ns[0]),),
        watched=tuple(make_watched([10, 20, 400], order) for order in range(9, 13)),
        summary=summarise({name: runs}, name),
    )


def make_results(*strategies: StrategyResult, **environment: object) -> Results:
    return Results(
        created_utc="2026-01-01T00:00:00+00:00",
        aerostat_version="0.1.0",
        trace=TraceFacts("t.balloon", "session", True, 0, 1, 10, 1 << 20, REJECTED),
        settings=Settings(
            runs=len(strategies[0].runs) if strategies else 1,
            warmup=1,
            watched_runs=4,
            seed=1,
            backing="anon",
            thp="madvise",
            siblings=0,
            resting_threads=1,
            cpu=3,
            memory_limit_bytes=None,
            residency="as recorded in the trace",
            requests_replayed=1,
            resident_bytes=20 << 12,
            touched_pages=5,
            cut_reason="",
        ),
        environment=replace(MACHINE, **environment),
        warnings=("w",),
        fidelity=Fidelity("qemu", 10, 10, True, 900, 1000, 10 / 9, ""),
        strategies=strategies,
        refused=(),
        calibration=(CalibrationPoint(4, 1, "small", False, 1, (900.0, 950.0)),),
        free_list=None,
    )
