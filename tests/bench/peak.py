"""Peak memory of a process that works on a trace, over what it had after the same on a small one.

    python -m tests.bench.peak TRACE account|check|show|load|plan|replay [STRATEGY]

`account` joins a trace and closes its ledger, as a recorder does at its end; `check` holds it
against its own rules; `show` makes the document of `aerostat show --json`. `load` reads the trace
and lists its PFNs; `plan` reads it and plans; `replay` does what `aerostat replay` does, with the
run's process inside this one, so that both are counted. No page of the replayed memory is resident
and none becomes so: what is measured is what lies beside it. Prints bytes.
"""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aerostat.verbs.show import document
from replay import rounds
from replay.job import Done, Job, run_job
from replay.plan import context_of
from replay.ranges import pfns_from_runs
from replay.requests import load_requests, memory_map
from replay.schedule import ReplayOptions, replay_trace
from replay.shared import Packed
from replay.strategies import STRATEGIES
from tracer.account.join import join
from tracer.account.ledger import ledger
from tracer.account.stages import stage_table
from tracer.trace.check import check_trace
from tracer.trace.reader import open_trace

REFERENCE = Path("traces/plain.balloon")
FORGET_PEAK = "5"
"""For /proc/PID/clear_refs (proc_pid_clear_refs(5), Linux 4.0)."""


def status_bytes(name: str) -> int:
    """A size in this process's /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


def account(path: Path) -> None:
    """Do what `settle` does, but for writing it down."""
    trace = open_trace(path)
    ledger(trace, join(trace))


def check(path: Path) -> None:
    """Check everything in it."""
    check_trace(open_trace(path))


def show(path: Path) -> None:
    """Make the document of a trace."""
    trace = open_trace(path)
    document(path, trace, stage_table(trace), ledger(trace))


def load(path: Path) -> None:
    """Read a trace, and every PFN of it."""
    requests = load_requests(open_trace(path))
    pfns_from_runs(requests.run_pfn, requests.run_pages)


def plan(path: Path, name: str) -> object:
    """Read a trace and plan it."""
    trace = open_trace(path)
    requests = load_requests(trace)
    return STRATEGIES[name].plan(requests, context_of(memory_map(trace), backing(name)))


def replay(path: Path, name: str) -> None:
    """Replay a trace once; the job is pickled, as on its way to another process.

    What lies in memory that both processes map is here once, as it is there.
    """

    def run_here(context: object, job: Job, timeout_ns: int) -> Done:
        del context, timeout_ns
        packed = Packed(job)
        return run_job(pickle.loads(packed.content, buffers=packed.buffers))

    rounds.run_in_fresh_process = run_here
    once = ReplayOptions(path, (name,), runs=1, warmup=0, watched_runs=0, residency="untouched")
    replay_trace(replace(once, backing=backing(name)))


def backing(name: str) -> str:
    """Memory that a strategy can work on."""
    return "memfd" if name == "punch" else "anon"


WORK: dict[str, Callable[..., object]] = {
    "account": account,
    "check": check,
    "show": show,
    "load": load,
    "plan": plan,
    "replay": replay,
}


def main() -> None:
    """Do one of these and print the peak."""
    path, what, *names = sys.argv[1:]
    WORK[what](REFERENCE, *names)  # loads what is loaded when it is first used
    gc.collect()
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text(FORGET_PEAK)
    WORK[what](Path(path), *names)
    print(status_bytes("VmHWM") - before)


if __name__ == "__main__":
    main()
