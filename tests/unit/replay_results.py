"""Results made by hand for tests of what reads them."""

from dataclasses import replace

from replay.environment import Environment
from replay.rejections import Rejection
from replay.results import (
    Fidelity,
    OperationTimes,
    Results,
    RingCounts,
    Run,
    Settings,
    StrategyResult,
    TraceFacts,
)

REJECTED = (Rejection("pages that are no guest memory", 3),)
MACHINE = Environment(
    kernel="6.1.0",
    architecture="x86_64",
    cpu_model="Test CPU",
    cpus=4,
    cpus_allowed=4,
    governor="performance",
    turbo="1",
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
        per_operation=OperationTimes(1, 2, 3, 4),
    )


def make_strategy(name: str, discard_ns: list[int], operations: int = 10) -> StrategyResult:
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
        runs=tuple(make_run(time, order) for order, time in enumerate(discard_ns)),
        warmups=(make_run(discard_ns[0]),),
    )


def make_results(*strategies: StrategyResult, **environment: object) -> Results:
    return Results(
        created_utc="2026-01-01T00:00:00+00:00",
        aerostat_version="0.1.0",
        trace=TraceFacts("t.balloon", "session", True, 0, 1, 10, 1 << 20, REJECTED),
        settings=Settings(
            runs=len(strategies[0].runs) if strategies else 1,
            warmup=1,
            seed=1,
            backing="anon",
            thp="madvise",
            siblings=0,
            cpu=None,
            per_operation=False,
            memory_limit_bytes=None,
            residency="as recorded in the trace",
            requests_replayed=1,
            resident_bytes=20 << 12,
            cut_reason="",
        ),
        environment=replace(MACHINE, **environment),
        warnings=("w",),
        fidelity=Fidelity("qemu", 10, 10, True, 900, 1000, 10 / 9, ""),
        strategies=strategies,
        refused=(),
    )
