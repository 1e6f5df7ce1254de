"""What the system-call probes of a recorder cost a process that nobody traces, per system call."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.bench.measure import Report, Settings, at_most, interleaved, run
from tracer.cost.machine_code import SYSTEM_CALLS, MachineCode, loop
from tracer.engine.attach import attach_all
from tracer.engine.host_engine import HostEngine
from tracer.sites import host_probes
from tracer.sites.probes import HOST_CALL_POINTS, Kind

CALLS = 200_000
NR_GETPPID = 110
NOP = b"\x90"


def measure(settings: Settings, report: Report) -> None:
    """Time getppid in a loop of machine code: without probes, with the classic ones, the raw."""
    code = MachineCode({"calls": SYSTEM_CALLS, "nop": loop(NOP)})
    with HostEngine(calls=False) as engine:
        every = host_probes.host_mechanisms(None, 0)

        def getppid_ns() -> float:
            return timed(lambda: code.call("calls", CALLS, NR_GETPPID))

        def probed_ns(kind: Kind) -> float:
            attach_all(engine.program, HOST_CALL_POINTS, {kind: every[kind]})
            try:
                return getppid_ns()
            finally:
                engine.program.detach()

        found = interleaved(
            {
                "nop": lambda: timed(lambda: code.call("nop", CALLS)),
                "none": getppid_ns,
                "none again": getppid_ns,
                "classic": lambda: probed_ns(Kind.TRACEPOINT),
                "raw": lambda: probed_ns(Kind.RAW_TRACEPOINT),
            },
            settings,
        )
    report.keep(found)
    none = found["none"]
    report.figure("one pass of the loop itself", "ns", found["nop"])
    report.figure("getppid, no probes", "ns", none)
    report.added("added by nothing (noise)", "ns", (none, found["none again"]))
    report.added("added by classic tracepoints", "ns", (none, found["classic"]), at_most(35))
    report.added("added by raw tracepoints", "ns", (none, found["raw"]))
    report.notes.append("probes of madvise and fallocate, entry and exit; this process is no VM")


def timed(loop: Callable[[], object]) -> float:
    """Nanoseconds a pass of a loop of CALLS passes."""
    begin_ns = time.perf_counter_ns()
    loop()
    return (time.perf_counter_ns() - begin_ns) / CALLS


if __name__ == "__main__":
    run("syscalls", measure)
