"""The thread that writes dumps: one for all VMs, none when idle, and none to be had."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.unit.test_flight import ASKED, feed, finished, recorder
from tests.unit.trace_samples import described
from tracer.record.dump_thread import DumpThread
from tracer.record.flight_dump import Dump
from tracer.trace.reader import open_trace

ROOT = Path(__file__).parents[2]
DONE = Dump(Path("x-00001.balloon"), "signal", 0, None)


def dump_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flight-dump"]


def until_none_is_left() -> None:
    deadline = time.monotonic() + 5
    while dump_threads():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_many_dumps_of_many_vms_take_one_thread_and_leave_none(tmp_path: Path) -> None:
    flights = []
    for name in range(20):
        (tmp_path / str(name)).mkdir()
        flights.append(recorder(tmp_path / str(name)))
    most = 0
    for last in range(1, 6):
        for flight in flights:
            feed(flight, last - 1, last)
            flight.dump(ASKED)
            most = max(most, len(dump_threads()))
    assert most == 1
    for flight in flights:
        dumps = finished(flight)
        assert [dump.problem for dump in dumps] == [None] * 5
        rows = [open_trace(dump.path).table("requests").num_rows for dump in dumps]
        assert rows == [1, 2, 3, 4, 5]
    until_none_is_left()
    flights[0].dump(ASKED)
    assert finished(flights[0])[0].problem is None
    for flight in flights:
        flight.close(described())
    until_none_is_left()


def test_who_waits_for_a_dump_does_not_wait_for_all_before_it() -> None:
    """A VM ends while those of all others wait: the recorder has rings to empty."""
    held = threading.Event()
    thread = DumpThread()
    done: list[str] = []

    def task(name: str) -> Future[Dump]:
        return thread.submit(lambda: done.append(name) or DONE)

    before = thread.submit(lambda: held.wait(10) and DONE)
    first, own, last = task("first"), task("own"), task("last")
    thread.finish(own)
    assert (own.result(), done) == (DONE, ["own"])
    assert not first.done()
    held.set()
    for future in (before, first, last):
        thread.finish(future)
    assert sorted(done) == ["first", "last", "own"]
    until_none_is_left()


def test_what_a_task_raises_ends_no_other() -> None:
    thread = DumpThread()
    futures = [thread.submit(lambda: 1 // 0), thread.submit(lambda: DONE)]
    assert futures[1].result(5) == DONE
    with pytest.raises(ZeroDivisionError):
        futures[0].result(5)
    until_none_is_left()


NO_THREADS = """
import os, resource, tempfile, threading
from pathlib import Path
import pyarrow.ipc
from tests.unit.test_flight import ASKED, feed, finished, recorder
from tests.unit.trace_samples import described

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)  # the limit does not hold for root
place = Path(tempfile.mkdtemp())
flight = recorder(place)
feed(flight, 0, 3)
_, most = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (0, most))
try:
    threading.Thread(target=print).start()
    print("there are threads to be had")
except RuntimeError:
    pass
flight.dump(ASKED)
(refused,) = finished(flight)
print(refused.problem.reason, refused.problem.remedy, sep=" | ")
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
feed(flight, 3, 5)
flight.dump(ASKED)
(dump,) = finished(flight)
flight.close(described())
print(dump.problem, dump.path)
"""


def test_a_dump_without_a_thread_to_be_had_is_told_of_and_recording_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_THREADS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    refused, dumped = done.stdout.splitlines()
    assert "can't start new thread" in refused
    assert "TasksMax" in refused
    problem, path = dumped.split()
    assert problem == "None"
    assert open_trace(path).table("requests").num_rows == 5
