"""Incidents that a flight recorder sees in what QEMU says of itself: each makes one trace."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.test_record_verb import marks, recording, until
from tests.standins.build import StandIn, qemu_like
from tracer.trace.errors import ExitCode
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import Mark

MIB = 1 << 20
HALF = 512 * MIB
OPTIONS = ("--flight", "60s", "--sample-every", "100ms")


Act = Callable[[StandIn], object]


def inflate(vm: StandIn) -> None:
    vm.send("inflate", 10_000, 1024, 1)


def deflate(vm: StandIn) -> None:
    vm.send("deflate", 10_000, 256, 1)


def kept(tmp_path: Path, begin: Act, rest_s: float, act: Act) -> Trace:
    """Do one thing, wait, do another: return the one trace that is kept, after the other."""
    output, bundle = tmp_path / "host.balloon", tmp_path / "host-00001.balloon"
    with qemu_like("-m", "1G") as vm, recording(vm, output, *OPTIONS) as recorder:
        begin(vm)
        time.sleep(rest_s)
        assert not bundle.exists()
        act(vm)
        until((bundle / "manifest.json").exists)
        time.sleep(1)
        assert recorder.end() == ExitCode.OK
    assert [path.name for path in tmp_path.glob("*.balloon")] == [bundle.name]
    return open_trace(bundle)


def test_memory_taken_back_from_a_target_that_was_reached(tmp_path: Path):
    def reach_it(vm: StandIn) -> None:
        vm.send("target", HALF)
        inflate(vm)
        vm.send("actual", HALF)

    def take_back(vm: StandIn) -> None:
        deflate(vm)
        vm.send("actual", HALF + MIB)

    trace = kept(tmp_path, reach_it, 4, take_back)
    assert trace.manifest.end_reason == "trigger: oom-deflate"
    (trigger,) = marks(trace, Mark.TRIGGER)
    assert trigger["value"] == MIB
    assert trigger["text"] == "oom-deflate: the guest took 1024 KiB back unasked"


def test_memory_taken_back_where_the_target_was_set_before_the_recorder_began(tmp_path: Path):
    trace = kept(tmp_path, inflate, 9, deflate)
    assert trace.manifest.end_reason == "trigger: oom-deflate"
    (trigger,) = marks(trace, Mark.TRIGGER)
    assert trigger["value"] == MIB
    assert "no target set meanwhile" in trigger["text"]
    assert trace.table("requests")["pages"].to_pylist() == [256] * 5


@pytest.mark.parametrize(
    ("number", "state"),
    [(2, "internal-error"), (3, "io-error"), (13, "watchdog"), (14, "guest-panicked")],
)
def test_a_vm_that_fails(number: int, state: str, tmp_path: Path):
    trace = kept(tmp_path, inflate, 1, lambda vm: vm.send("runstate", number))
    assert trace.manifest.end_reason == "trigger: vm-fault"
    (trigger,) = marks(trace, Mark.TRIGGER)
    assert trigger["text"] == f"vm-fault: the VM went into run state {state}"
    assert sum(trace.table("requests")["pages"].to_pylist()) == 1024
