"""How often each probe of a VM was hit, and what the recorder says that they cost it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.recording import recording
from tests.standins.build import Did, StandIn, qemu_like
from tracer.record.live import VmStats
from tracer.trace.manifest import ProbeRecord
from tracer.trace.reader import open_trace

DEVICE = ("-device", "virtio-balloon-pci,free-page-reporting=on,free-page-hint=on")


def probes_of(output: Path) -> dict[str, ProbeRecord]:
    return {probe.point: probe for probe in open_trace(output).manifest.sides["host"].probes}


def watched(
    output: Path, act: Callable[[StandIn], list[Did]], *arguments: str
) -> tuple[list[Did], VmStats]:
    """Record until every request was told; return what was done and the last figures."""
    told: list[list[VmStats]] = []
    with (
        qemu_like(*arguments, *DEVICE) as vm,
        recording(vm, output, sample_every_s=0.2, told=told.append),
    ):
        did = act(vm)
        deadline = time.monotonic() + 20
        wanted = sum(each.requests for each in did)
        while not told or sum(told[-1][0].requests.values()) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return did, told[-1][0]


def test_each_point_has_a_count_of_its_own(tmp_path: Path):
    output = tmp_path / "host.balloon"
    blocks = [place for number in range(20) for place in (f"{64 + 4 * number}m", "4m")]

    def act(vm: StandIn) -> list[Did]:
        reports = [vm.send("report", "64m", "2m") for _ in range(7)]
        return [vm.send("inflate", 10_000, 2560, 1), vm.send("hint", *blocks), *reports]

    (inflated, hinted, *reported), _ = watched(output, act, "-m", "1G")
    hits = {name: probe.hits for name, probe in probes_of(output).items()}
    assert (inflated.requests, hinted.requests, len(reported)) == (10, 20, 7)
    assert (hits["queues-push"], hits["hint-push"], hits["reporting-push"]) == (10, 20, 7)
    # Where an empty queue is seen too, once for each time that the guest notifies.
    assert hits["queues-pop"] in (10, 20)
    assert hits["reporting-pop"] in (7, 14)
    assert hits["madvise-enter"] == hits["madvise-exit"] == inflated.calls + 7
    assert hits["fallocate-exit"] == 0


def test_an_empty_queue_of_hints_is_polled_for_nothing(tmp_path: Path):
    """QEMU pops it over and over while it hints: none of that may run into a probe."""
    output = tmp_path / "host.balloon"
    _, _ = watched(
        output, lambda vm: [vm.send("poll", 10_000), vm.send("hint", "64m", "4m")], "-m", "256M"
    )
    probes = probes_of(output)
    assert (probes["hint-pop"].hits, probes["hint-push"].hits) == (1, 1)
    assert probes["hint-pop"].cost_ns is not None


def test_what_probes_cost_is_the_sum_over_their_hits(tmp_path: Path):
    output = tmp_path / "host.balloon"
    (did,), seen = watched(output, lambda vm: [vm.send("inflate", 100_000, 50_000, -1)], "-m", "1G")
    probes = probes_of(output)
    expected = sum(
        probe.cost_ns * probe.hits
        for probe in probes.values()
        if probe.cost_ns is not None and probe.hits is not None
    )
    pair = probes["madvise-enter"].cost_ns + probes["madvise-exit"].cost_ns
    assert expected > pair * did.calls
    # A body's cost is the mean of its runs, and goes on being measured after this reading.
    assert seen.probe_ns == pytest.approx(expected, rel=0.3)
