"""What probes cost, measured on this kernel: orders that hold on any, no figures."""

import os
import threading
from pathlib import Path

from tracer.cost.machine_code import MachineCode, loop
from tracer.cost.trap_cost import EMULATED, INSTRUCTIONS, SINGLE_STEPPED, trap_costs
from tracer.engine.bpf_programs import RunStats
from tracer.engine.loader import EmptyPrograms
from tracer.sites.instructions import is_emulated

HITS = 997


def settle() -> None:
    """Wait for probes that are taken away in the background."""
    for thread in threading.enumerate():
        if thread.name == "aerostat-detach":
            thread.join()


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_a_single_stepped_instruction_costs_a_multiple_of_every_emulated_one():
    costs = trap_costs(INSTRUCTIONS)
    assert set(costs) == set(INSTRUCTIONS)
    dear = costs.pop(SINGLE_STEPPED)
    assert min(costs.values()) > 0
    assert dear > 3 * max(costs.values())


def test_the_code_that_is_timed_is_of_the_kind_it_stands_for():
    kinds = {name: is_emulated(code) for name, code in INSTRUCTIONS.items()}
    assert kinds == {name: name != SINGLE_STEPPED for name in INSTRUCTIONS}


def test_timing_leaves_nothing_behind():
    settle()
    before = descriptors()
    trap_costs((EMULATED,))
    settle()
    assert descriptors() == before


def test_every_hit_of_a_probe_is_one_run_of_its_program():
    code = MachineCode({"jump": loop(INSTRUCTIONS[EMULATED])})
    with EmptyPrograms() as programs:
        programs.attach_uprobe("here", code.path, code.offset("jump"), os.getpid())
        # Another process of this machine may have the kernel count as well, at any time.
        before = programs.runs("here")
        with RunStats():
            code.call("jump", HITS)
            runs = programs.runs("here").since(before)
    assert runs.count == HITS
    assert runs.mean_ns is not None
    assert 0 < runs.mean_ns < 1_000_000
    assert programs.runs("nowhere").mean_ns is None
    code.close()
