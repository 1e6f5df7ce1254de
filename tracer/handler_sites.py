"""Chooses the instructions inside a QEMU handler that are probed, from its machine code."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.elf import Binary, Function
from tracer.errors import SymbolError
from tracer.instructions import cheapest_site

_CALL_BYTES = 5
_ERROR_PATH_BYTES = 32
"""A push that begins so soon after a call of virtio_error lies on its path: two argument moves and
a jump fit, another path's code does not."""


@dataclass(frozen=True, slots=True)
class Sites:
    """Addresses of the probed instructions: see `Handler` of tracer/recover.py."""

    pop: int
    push: int | None
    pop_is_emulated: bool


def find_sites(binary: Binary, name: str, function: Function, *, pushes: bool) -> Sites:
    """Choose the sites of one handler.

    Args:
        binary: QEMU.
        name: The handler's name, for the error.
        function: Its code.
        pushes: Whether the handler itself returns the element it popped.

    Raises:
        SymbolError: It does not call virtqueue_pop once, or virtqueue_push once besides the path
            of an error, on which the device breaks and takes no further request.
    """
    pops = binary.calls(binary.symbols["virtqueue_pop"], function)
    returns = _without_errors(binary, function) if pushes else []
    if len(pops) != 1 or len(returns) != int(pushes):
        raise SymbolError(
            f"cannot place probes in {name} of {binary.path}",
            reason=f"it calls virtqueue_pop {len(pops)} and virtqueue_push {len(returns)} times",
        )
    site, emulated = _after_pop(binary, pops[0])
    return Sites(site, returns[0] if returns else None, emulated)


def _without_errors(binary: Binary, function: Function) -> list[int]:
    pushes = binary.calls(binary.symbols["virtqueue_push"], function)
    error = binary.symbols.get("virtio_error")
    errors = binary.calls(error, function) if error is not None else []
    return [push for push in pushes if not any(0 < push - at <= _ERROR_PATH_BYTES for at in errors)]


def _after_pop(binary: Binary, call: int) -> tuple[int, bool]:
    """Choose the instruction after a call of virtqueue_pop at which rax still holds the element.

    Compilers test the result at once: `[mov %rax, %reg]; test %rax, %rax; je`. A hit on the jump is
    by far the cheapest (tracer/instructions.py).
    """
    start = call + _CALL_BYTES
    code = binary.code(start, 24)
    is_moved = code[0] in (0x48, 0x49) and code[1] == 0x89 and code[2] & 0xF8 == 0xC0
    at = 3 if is_moved else 0
    sites = [0, at + 3] if code[at : at + 3] == b"\x48\x85\xc0" else [0]
    return cheapest_site((start + site, code[site:]) for site in sites)
