"""What the recorder says its probes cost a VM: each hit once, whatever points share its count."""

import time
from pathlib import Path
from statistics import fmean

import pytest

from tests.kernel.recording import recording
from tests.standins.build import qemu_like
from tracer.live import VmStats
from tracer.trace.reader import open_trace

DEVICE = ("-device", "virtio-balloon-pci,free-page-reporting=on,free-page-hint=on")


def test_points_that_share_a_count_of_hits_cost_it_once(tmp_path: Path):
    output = tmp_path / "host.balloon"
    told: list[list[VmStats]] = []
    options = {"sample_every_s": 0.2, "told": told.append}
    with qemu_like("-m", "1G", *DEVICE) as vm, recording(vm, output, **options):
        did = vm.send("inflate", 100_000, 50_000, -1)
        deadline = time.monotonic() + 20
        while not told or sum(told[-1][0].requests.values()) < did.requests:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        seen = told[-1][0]
    cost = {}
    probes = open_trace(output).manifest.sides["host"].probes
    for end in ("enter", "exit", "pop", "push"):
        costs = [probe.cost_ns for probe in probes if probe.point.endswith(f"-{end}")]
        known = [cost_ns for cost_ns in costs if cost_ns is not None]
        assert len(known) > 1
        cost[end] = fmean(known)
    hits = {"enter": did.calls, "exit": did.calls, "pop": 2 * did.requests, "push": did.requests}
    expected = sum(cost[end] * hits[end] for end in cost)
    # A body's cost is the mean of its runs, and goes on being measured after this reading.
    assert seen.probe_ns == pytest.approx(expected, rel=0.3)
