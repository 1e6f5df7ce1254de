"""What one hit of a probe costs, by its kind; kernel functions in the lab's guest as well."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from lab.session import LabOptions, open_vm
from tests.bench.measure import Report, Settings, interleaved, run
from tracer.cost.call_cost import CallCost
from tracer.cost.function_cost import FUNCTION_KINDS, function_cost
from tracer.cost.machine_code import MachineCode, loop
from tracer.cost.trap_cost import INSTRUCTIONS, trap_costs
from tracer.engine.attach import attach_all
from tracer.engine.host_engine import HostEngine
from tracer.errors import ProbeError
from tracer.sites import host_probes
from tracer.sites.probes import HOST_CALL_POINTS, Kind

GUEST = LabOptions(output=Path("unused.balloon"), memory_bytes=512 << 20)
GUEST_TIMEOUT_S = 300
IN_GUEST = """
import json, random, sys
from tracer.cost.function_cost import FUNCTION_KINDS, function_cost
order = random.Random(int(sys.argv[2]))
rounds = []
for _ in range(int(sys.argv[1])):
    kinds = order.sample(FUNCTION_KINDS, len(FUNCTION_KINDS))
    rounds.append({kind.value: function_cost(kind) for kind in kinds})
print(json.dumps(rounds))
"""


def measure(settings: Settings, report: Report) -> None:
    """Time empty programs, and the recorder's own on a discarding call."""
    uprobes(settings, report)
    system_calls(settings, report)
    kernel_functions(settings, report)


def uprobes(settings: Settings, report: Report) -> None:
    """Empty programs on each kind of instruction, in a loop of machine code."""
    code = MachineCode({"nop": loop(b"\x90")})
    order = random.Random(settings.seed)
    rounds = []
    for _ in range(settings.pairs + 1):
        names = order.sample(list(INSTRUCTIONS), len(INSTRUCTIONS))
        rounds.append({"nop loop": code.pass_ns("nop", 10_000), **trap_costs(names)})
    found = {name: [each[name] for each in rounds[1:]] for name in rounds[0]}
    report.keep({f"uprobe, {name}": values for name, values in found.items()})
    report.figure("one pass of the loop itself", "ns", found["nop loop"])
    for name in INSTRUCTIONS:
        what = "single-stepped instruction" if name == "other" else f"emulated: {name}"
        report.figure(f"uprobe on {what}, empty program", "ns", found[name])


def system_calls(settings: Settings, report: Report) -> None:
    """The recorder's programs on entry and exit of a madvise of a thread in a request."""
    every = host_probes.host_mechanisms(None, 0)
    with HostEngine(calls=False) as engine:

        def pair_ns(*kinds: Kind) -> float:
            with CallCost() as cost:
                attach_all(engine.program, HOST_CALL_POINTS, {kind: every[kind] for kind in kinds})
                try:
                    found = cost.traced_ns(engine)
                finally:
                    engine.program.detach()
            assert found is not None, "the probes saw no call"
            return found

        sides: dict[str, Callable[[], float]] = {
            "classic tracepoints": lambda: pair_ns(Kind.TRACEPOINT),
            "raw tracepoints": lambda: pair_ns(Kind.RAW_TRACEPOINT),
        }
        found = interleaved(sides, settings)
    report.keep(found)
    for name in sides:
        report.figure(f"{name} on entry and exit, our programs", "ns", found[name])


def kernel_functions(settings: Settings, report: Report) -> None:
    """Empty programs on a system call's own function: here where it can be, and in the lab."""
    for kind in FUNCTION_KINDS:
        try:
            samples = [function_cost(kind) for _ in range(settings.pairs + 1)][1:]
        except ProbeError as error:
            report.notes.append(f"{kind.value}: not on this host: {error.reason or error.what}")
        else:
            report.keep({kind.value: samples})
            report.figure(f"{kind.value}, empty program", "ns", samples)
    with open_vm(GUEST) as vm:
        command = [vm.agent.python, "-c", IN_GUEST, str(settings.pairs + 1), str(settings.seed)]
        rounds = json.loads(vm.agent.run(command, GUEST_TIMEOUT_S))[1:]
        report.notes.append(
            f"lab guest: kernel {vm.agent.release} on {vm.options.accelerator}; "
            "an emulated CPU's times compare with each other alone"
        )
    for kind in FUNCTION_KINDS:
        samples = [each[kind.value] for each in rounds]
        report.keep({f"lab guest, {kind.value}": samples})
        report.figure(f"lab guest: {kind.value}, empty program", "ns", samples)


if __name__ == "__main__":
    run("hits", measure)
