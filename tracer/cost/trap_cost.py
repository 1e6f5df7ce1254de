"""Measures what a uprobe's trap costs on this machine, by the kind of instruction it sits on."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from tracer.cost.machine_code import MachineCode, loop
from tracer.engine.loader import EmptyPrograms
from tracer.errors import ProbeError
from tracer.sites.instructions import LONGEST_INSTRUCTION_BYTES, is_emulated

INSTRUCTIONS: Mapping[str, bytes] = {
    "jump": b"\x74\x00",  # je to the next instruction
    "call": b"\xe8\0\0\0\0\x48\x83\xc4\x08",  # call the next instruction; add $8, %rsp
    "push": b"\x50\x58",  # push %rax; pop %rax
    "nop": b"\x90",
    "other": b"\xb8\0\0\0\0",  # mov $0, %eax, as libc's madvise begins
}
"""Probed instruction, and what undoes it; the kernel emulates all but the last."""
EMULATED, SINGLE_STEPPED = "jump", "other"
"""What stands for its kind where time is short: a jump is what the balloon's handlers are probed
at."""
_HITS = {SINGLE_STEPPED: 24}
_HITS_EMULATED = 100


def trap_costs(instructions: Iterable[str] = (EMULATED, SINGLE_STEPPED)) -> dict[str, float]:
    """Time empty uprobes in a loop of this process.

    15 batches of each take 0.5 ms where the instruction is emulated and 1 to 4 ms where not; to
    attach takes 8 ms each. Detaching waits for a grace period of the kernel, about 0.1 s each, and
    does so in a thread of its own.

    Args:
        instructions: Keys of INSTRUCTIONS.

    Returns:
        Nanoseconds that one hit adds, by instruction, without what the BPF program does.

    Raises:
        BccError: libbpf is missing.
        ProbeError: A uprobe does not attach.
    """
    wanted = list(instructions)
    code = MachineCode({name: loop(INSTRUCTIONS[name]) for name in wanted})
    bare_ns = {name: code.pass_ns(name, _hits(name)) for name in wanted}
    programs = EmptyPrograms()
    closing = contextlib.ExitStack()
    closing.callback(code.close)
    closing.callback(programs.close)
    try:
        for name in wanted:
            programs.attach_uprobe("empty", code.path, code.offset(name), os.getpid())
        return {name: max(0.0, code.pass_ns(name, _hits(name)) - bare_ns[name]) for name in wanted}
    finally:
        threading.Thread(target=closing.close, name="aerostat-detach").start()


def site_cost(program: Path, file_offset: int, costs_ns: Mapping[str, float]) -> float | None:
    """Say what a trap costs at one place.

    Args:
        program: A program file.
        file_offset: Where a uprobe is, or is to be.
        costs_ns: Of EMULATED and SINGLE_STEPPED at least, as `trap_costs` measured them.

    Returns:
        Nanoseconds; None where that kind was not measured or the file cannot be read.
    """
    try:
        emulated = _is_site_emulated(program, file_offset)
    except OSError:
        return None
    return costs_ns.get(EMULATED if emulated else SINGLE_STEPPED)


@functools.lru_cache(maxsize=4096)
def _is_site_emulated(program: Path, file_offset: int) -> bool:
    """Look once: /proc/PID/exe cannot be read any more when the VM's end closes its trace."""
    with program.open("rb") as file:
        file.seek(file_offset)
        return is_emulated(file.read(LONGEST_INSTRUCTION_BYTES))


def _hits(name: str) -> int:
    return _HITS.get(name, _HITS_EMULATED)


def try_trap_costs() -> dict[str, float]:
    """Time one emulated and one single-stepped instruction; empty where it cannot be done."""
    try:
        return trap_costs()
    except ProbeError:
        return {}
