"""Real clocks that are really set: the wall clock as root, the boot clock by a time namespace."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracer.record.clock_watch import ClockWatch
from tracer.trace.schema import Mark

ROOT = Path(__file__).parents[2]
STEP_NS = 30_000_000

SLEEPER = """
import ctypes, json, os, sys
from tracer.record.clock_watch import ClockWatch

CLONE_NEWTIME = 0x80  # include/uapi/linux/sched.h, since 5.6
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()  # only a process of one thread may change its time namespace
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
watch = ClockWatch()
assert watch.check() == []
if libc.unshare(CLONE_NEWTIME) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
with open("/proc/self/timens_offsets", "w") as file:
    file.write(f"boottime {sys.argv[1]} 0")
namespace = os.open("/proc/self/ns/time_for_children", os.O_RDONLY)
if libc.setns(namespace, CLONE_NEWTIME) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
events = watch.check()
print(json.dumps([[event.mark.name, event.ts_ns, event.since_ns, event.value] for event in events]))
"""


def test_clocks_that_do_nothing_special():
    watch = ClockWatch()
    for _ in range(20):
        assert watch.check() == []
        time.sleep(0.002)


def shift_wall_clock(delta_ns):
    now_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    time.clock_settime_ns(time.CLOCK_REALTIME, now_ns + delta_ns)


@pytest.fixture
def may_set_the_clock():
    try:
        shift_wall_clock(0)
    except PermissionError:
        pytest.skip("may not set the wall clock")


@pytest.mark.parametrize("direction", [1, -1])
def test_the_wall_clock_is_set(may_set_the_clock, direction):
    watch = ClockWatch()
    before_ns = time.monotonic_ns()
    shift_wall_clock(direction * STEP_NS)
    try:
        (event,) = watch.check()
    finally:
        shift_wall_clock(-direction * STEP_NS)
    assert event.mark is Mark.CLOCK_STEP
    assert abs(event.value - direction * STEP_NS) < 5_000_000
    assert event.since_ns <= before_ns <= event.ts_ns <= time.monotonic_ns()
    (back,) = watch.check()
    assert back.value * direction < 0
    assert watch.check() == []


def test_the_machine_slept():
    """A time namespace moves the boot clock on as a sleep does: the others stay where they were."""
    done = subprocess.run(
        [sys.executable, "-c", SLEEPER, "3600"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "not permitted" in done.stderr:
        pytest.skip("may not make a time namespace")
    assert done.returncode == 0, done.stderr
    events = {name: (ts, since, value) for name, ts, since, value in json.loads(done.stdout)}
    ts_ns, since_ns, value = events["SUSPEND"]
    assert abs(value - 3600 * 10**9) < 1_000_000
    assert 0 < ts_ns - since_ns < 10**9
    # No namespace moves the wall clock along, as a real sleep would: it seems to have been set.
    assert abs(events["CLOCK_STEP"][2] + 3600 * 10**9) < 1_000_000
