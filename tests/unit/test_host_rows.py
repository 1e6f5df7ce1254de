"""Calls find their request, however many requests come between two looks at the calls."""

import numpy as np
import pyarrow.compute as pc
import pytest

from tests.standins.build import qemu_like
from tracer.engine import decode
from tracer.host_side.guest_map import GuestMap
from tracer.host_side.host_rows import HostRows
from tracer.host_side.host_tally import Tally
from tracer.trace.check import check_trace
from tracer.trace.manifest import Manifest, SideInfo
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side, Wire
from tracer.trace.writer import TraceWriter
from tracer.vms.vmm import inspect

NO_CALLS = np.empty(0, decode.HOST_CALLS)


def inflates(first: int, count: int) -> np.ndarray:
    """Requests of one page each, as compaction sends them."""
    records = np.zeros(count, decode.HOST_REQUEST)
    records["token"] = 2 * np.arange(first, first + count)
    records["pop_ns"] = 1000 * np.arange(first, first + count) + 1
    records["push_ns"] = records["pop_ns"] + 500
    records["total"] = records["filled"] = 1
    records["wire"] = Wire.PFNS
    records["payload"][:, 0] = np.arange(first, first + count) % 60_000
    return records


def discards(first: int, count: int) -> np.ndarray:
    records = np.zeros(count, decode.HOST_CALLS)
    records["token"] = 2 * np.arange(first, first + count)
    records["count"], records["length_bytes"], records["advice"] = 1, 4096, 4
    return records


@pytest.mark.parametrize("requests", [100, 20_000])
def test_calls_of_many_small_requests_find_them(tmp_path, requests):
    path = tmp_path / "t.balloon"
    with qemu_like("-m", "256M") as vm, TraceWriter(path, Side.HOST) as writer:
        rows = HostRows(writer, GuestMap(inspect(vm.pid)), calls_observed=True, tally=Tally())
        for first in range(0, requests, 1000):
            rows.add(inflates(first, min(1000, requests)), NO_CALLS)
        rows.add(np.empty(0, decode.HOST_REQUEST), discards(0, requests))
        rows.finish()
        writer.close(Manifest(sides={"host": SideInfo(4096, 0, 10**12)}))
    calls = open_trace(path).table("calls")
    assert calls.num_rows == requests
    assert calls["request_seq"].null_count == 0
    assert pc.count_distinct(calls["request_seq"]).as_py() == requests


def test_calls_of_a_request_that_was_lost_last_are_kept_without_one(tmp_path):
    path = tmp_path / "t.balloon"
    with qemu_like("-m", "256M") as vm, TraceWriter(path, Side.HOST) as writer:
        rows = HostRows(writer, GuestMap(inspect(vm.pid)), calls_observed=True, tally=Tally())
        rows.add(inflates(0, 3), discards(0, 5))
        rows.finish()
        writer.close(Manifest(sides={"host": SideInfo(4096, 0, 10**12)}))
    trace = open_trace(path)
    assert trace.table("calls")["request_seq"].to_pylist() == [0, 1, 2, None, None]
    assert not [f for f in check_trace(trace) if f.code == "call-orphan"]
