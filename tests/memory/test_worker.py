"""The process of each run: fresh, bounded in time, and its end told whatever it is."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from replay.backings import Advice
from replay.job import Job, RunError, run_job
from replay.native.exchange import exchange
from replay.native.types import Operations
from replay.ranges import Runs, empty
from replay.residency import Residency
from replay.sending import Sending
from replay.worker import WorkerError, pausing_process, process_context, run_in_fresh_process
from tracer.trace.errors import AerostatError


def job(**changes) -> Job:
    nothing = np.zeros(0, np.uint8)
    made = Job(
        title="run 1 of qemu on small.balloon",
        order=0,
        seed=1,
        size_bytes=1 << 22,
        backing="anon",
        thp="madvise",
        residency=Residency(empty(), empty(), ""),
        operations=Operations(
            nothing, np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64)
        ),
        sending=Sending(
            nothing, np.zeros(1, np.uint64), nothing, nothing, nothing, np.zeros(0, np.int64)
        ),
        regions=((0, 1 << 22, 0),),
        cpu=None,
        send_cpus=None,
        crew_cpus=(),
        sibling_cpus=(),
        touched=empty(),
        watched=False,
    )
    return dataclasses.replace(made, **changes)


class Bomb:
    """Kills the process that unpickles it."""

    def __init__(self, action: str) -> None:
        self.action = action

    def __reduce__(self):
        return exec, (f"import os, time; {self.action}",)


def workers() -> set[int]:
    """Processes below the fork server, which is a child of this process."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            below = Path(f"/proc/{child}/task/{child}/children")
            found |= set(map(int, below.read_text().split())) if below.exists() else set()
    return found


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os.abort()", "killed by SIGABRT"),
        ("os._exit(7)", "code 7"),
    ],
)
def test_a_worker_that_dies_is_named(action, message):
    with pytest.raises(WorkerError, match=message) as caught:
        run_in_fresh_process(process_context(), job(title=Named(action)), 10**11)
    assert "qemu on small.balloon" in str(caught.value)


class Named(str):
    """A title that is also a bomb when it reaches the worker."""

    def __new__(cls, action: str):
        made = super().__new__(cls, "run 1 of qemu on small.balloon")
        made.action = action
        return made

    def __reduce__(self):
        return Bomb(self.action).__reduce__()


def test_a_worker_that_hangs_is_ended():
    context = process_context()
    before = workers()
    with pytest.raises(WorkerError, match="did not end within"):
        run_in_fresh_process(context, job(title=Named("time.sleep(1000)")), 5 * 10**8)
    assert workers() == before


def test_an_error_in_the_worker_comes_back_whole():
    bad = Operations(
        np.array([Advice.DONTNEED], np.uint8),
        np.array([1 << 22], np.uint64),
        np.array([4096], np.uint64),
        np.zeros(1, np.int64),
    )
    with pytest.raises(AerostatError) as caught:
        run_in_fresh_process(process_context(), job(operations=bad), 10**11)
    assert "operation 0 of 1 was refused" in caught.value.what
    assert caught.value.remedy


def shown_and_done(job, pause):
    pause(os.getpid())
    return job.seed


def fails_before_it_stops(job, pause):
    raise AerostatError("no memory")


def test_a_process_that_stops_on_its_way_goes_on_when_it_is_told():
    before = workers()
    with pausing_process(process_context(), shown_and_done, job(seed=7), 10**11) as worker:
        assert worker.stopped() in workers() - before
        assert not worker.is_done(0.05)
        worker.go_on()
        assert worker.is_done(60)
        assert worker.answer() == 7
    assert workers() == before


def test_a_process_that_is_not_let_go_on_is_ended():
    before = workers()
    with (
        pytest.raises(ZeroDivisionError),
        pausing_process(process_context(), shown_and_done, job(), 10**11) as worker,
    ):
        raise ZeroDivisionError(worker.stopped())
    assert workers() == before
    with pausing_process(process_context(), shown_and_done, job(), 3 * 10**8) as worker:
        worker.stopped()
        assert worker.is_done(10), "its time is over"
        with pytest.raises(WorkerError, match="did not end within"):
            worker.answer()
    assert workers() == before


def test_what_fails_before_it_stops_is_told():
    with (
        pytest.raises(AerostatError, match="no memory"),
        pausing_process(process_context(), fails_before_it_stops, job(), 10**11) as worker,
    ):
        worker.stopped()


def test_every_run_is_a_process_of_its_own():
    context = process_context()
    pages = Runs(np.array([0]), np.array([1024]))
    resident = Residency(pages, empty(), "")
    first = run_in_fresh_process(context, job(residency=resident), 10**11)
    second = run_in_fresh_process(context, job(), 10**11)
    assert first.run.resident_before_pages == 1024
    assert second.run.resident_before_pages == 0


def test_the_callers_script_is_not_run_again(make_trace, tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from replay.schedule import ReplayOptions, replay_trace\n"
        "import pathlib, sys\n"
        "print('started')\n"
        "o = ReplayOptions(pathlib.Path(sys.argv[1]), ('range',), runs=1, warmup=0)\n"
        "print(len(replay_trace(o).strategies))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(make_trace())],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.split() == ["started", "2"]


def test_driver_and_device_have_a_cpu_each_and_the_rest_of_a_run_has_its_own(monkeypatch):
    before = os.sched_getaffinity(0)
    cpus = (min(before), max(before))
    seen = []

    def looked_at(sent, agreed):
        seen.append((agreed.cpus, os.sched_getaffinity(0)))
        return exchange(sent, agreed)

    monkeypatch.setattr("replay.job.exchange", looked_at)
    try:
        run_job(job(cpu=cpus[1], send_cpus=cpus))
        after = os.sched_getaffinity(0)
    finally:
        os.sched_setaffinity(0, before)
    assert seen == [(cpus, before)]
    assert after == {cpus[1]}


def test_what_comes_over_the_rings_must_be_what_was_sent(monkeypatch):
    def altered(sent, agreed):
        found = exchange(sent, agreed)
        found.received[0] ^= 1
        return found

    monkeypatch.setattr("replay.job.exchange", altered)
    zero, content = np.zeros(1, np.uint8), np.zeros(4, np.uint8)
    start, wait = np.array([0, 4], np.uint64), np.ones(1, np.uint8)
    sent = Sending(content, start, zero, zero, wait, np.zeros(1, np.int64))
    with pytest.raises(RunError, match="did not come over the virtqueues as they were sent"):
        run_job(job(sending=sent))
