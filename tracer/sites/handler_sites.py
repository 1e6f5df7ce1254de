"""Chooses the instructions of a QEMU that are probed, from its machine code."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from tracer.errors import SymbolError
from tracer.sites.elf import Binary, Function
from tracer.sites.instructions import (
    ENDBR64,
    LONGEST_INSTRUCTION_BYTES,
    cheapest_site,
    is_emulated,
)

_CALL_BYTES = 5
_ERROR_PATH_BYTES = 32
"""A push that begins so soon after a call of virtio_error lies on its path: two argument moves and
a jump fit, another path's code does not."""

_KEEPS_RAX = re.compile(
    rb"\x48?\xc7\x44\x24.{5}"  # mov $number, place(%rsp), of 8 or of 4 bytes
    rb"|\x48?\xc7\x84\x24.{8}"
    rb"|\x31[\xc9\xd2\xdb\xed\xf6\xff]|\x45\x31[\xc0\xc9\xd2\xdb\xe4\xed\xf6\xff]",  # xor %r, %r
    re.DOTALL,
)
"""Instructions that leave rax, and the way, as they are: with such a compiler clears the variables
of a loop. Only what is known here is stepped over, so none is ever taken for another."""
_MOST_STEPS = 8

_SHORT_JUMPS, _NEAR_JUMPS = (0x74, 0x75), (b"\x0f\x84", b"\x0f\x85")
"""je and jne, by a displacement of one byte and of four."""


@dataclass(frozen=True, slots=True)
class Sites:
    """Addresses of the probed instructions: see `Handler` of tracer/sites/recover.py."""

    pop: int
    push: int | None
    pop_is_emulated: bool


def find_sites(
    binary: Binary, name: str, function: Function, *, pushes: bool, polls: bool = False
) -> Sites:
    """Choose the sites of one handler.

    Args:
        binary: QEMU.
        name: The handler's name, for the error.
        function: Its code.
        pushes: Whether the handler itself returns the element it popped.
        polls: Whether it pops an empty queue over and over: then the site is best where only an
            element leads, whatever a hit there costs.

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
    site, emulated = _after_pop(binary, function, pops[0], polls=polls)
    return Sites(site, returns[0] if returns else None, emulated)


def find_entry(binary: Binary, address: int) -> int:
    """Choose where a function is probed as it is entered.

    In a QEMU built for CET that is behind the endbr64 it begins with, where the kernel emulates
    what follows: endbr64 changes nothing, and is single-stepped (tracer/sites/instructions.py).

    Args:
        binary: QEMU.
        address: The function's.

    Returns:
        Address of an instruction that runs once each time the function is entered.
    """
    behind = address + len(ENDBR64)
    code = binary.code(address, len(ENDBR64) + LONGEST_INSTRUCTION_BYTES)
    if not code.startswith(ENDBR64) or not is_emulated(code[len(ENDBR64) :]):
        return address
    function = binary.function_at(address)
    if function is None or not function.holds(behind) or _jumps_to(binary, function, behind):
        return address
    return behind


def _without_errors(binary: Binary, function: Function) -> list[int]:
    pushes = binary.calls(binary.symbols["virtqueue_push"], function)
    error = binary.symbols.get("virtio_error")
    errors = binary.calls(error, function) if error is not None else []
    return [push for push in pushes if not any(0 < push - at <= _ERROR_PATH_BYTES for at in errors)]


def _after_pop(binary: Binary, function: Function, call: int, *, polls: bool) -> tuple[int, bool]:
    """Choose the instruction after a call of virtqueue_pop at which rax still holds the element.

    Compilers test the result at once: `[mov %rax, %reg]; test %rax, %rax; je`. A hit on the jump is
    by far the cheapest (tracer/sites/instructions.py), but it is also hit where the queue is empty.
    An instruction that is as cheap and that only an element leads to is better: QEMU 7.2 and 10.0
    have one in every handler but that of hints.
    """
    start = call + _CALL_BYTES
    code = binary.code(start, 24)
    is_moved = code[0] in (0x48, 0x49) and code[1] == 0x89 and code[2] & 0xF8 == 0xC0
    at = 3 if is_moved else 0
    sites = [0, at + 3] if code[at : at + 3] == b"\x48\x85\xc0" else [0]
    if len(sites) > 1:
        behind = _behind_test(binary, function, start + sites[1])
        if behind is not None:
            onward = _emulated_onward(binary, function, behind)
            if onward is not None:
                return onward, True
            if polls:
                return behind, False
    return cheapest_site((start + site, code[site:]) for site in sites)


def _behind_test(binary: Binary, function: Function, jump: int) -> int | None:
    """Return where an element leads: behind a `je`, or where a `jne` goes.

    Args:
        binary: QEMU.
        function: Code that holds the jump.
        jump: Address of the instruction after the test.

    Returns:
        None where it is no such jump, or another jump may lead there, with something else in rax.
    """
    code = binary.code(jump, 6)
    short = code[0] in _SHORT_JUMPS
    if not short and code[:2] not in _NEAR_JUMPS:
        return None
    length = 2 if short else 6
    is_equal = code[0] == _SHORT_JUMPS[0] if short else code[:2] == _NEAR_JUMPS[0]
    displacement = struct.unpack_from("<b" if short else "<i", code, 1 if short else 2)[0]
    place = jump + length + (0 if is_equal else displacement)
    is_shared = any(at != jump for at in _jumps_to(binary, function, place))
    return place if function.holds(place) and not is_shared else None


def _emulated_onward(binary: Binary, function: Function, place: int) -> int | None:
    """Return the first instruction from a place on that the kernel emulates.

    Args:
        binary: QEMU.
        function: Code that holds the place.
        place: Address of an instruction to which one way leads.

    Returns:
        None where an instruction before it might change rax, or another way might lead there.
    """
    for _ in range(_MOST_STEPS):
        code = binary.code(place, LONGEST_INSTRUCTION_BYTES)
        if is_emulated(code):
            return place
        step = _KEEPS_RAX.match(code)
        if step is None:
            return None
        place += step.end()
        if not function.holds(place) or _jumps_to(binary, function, place):
            return None
    return None


def _jumps_to(binary: Binary, function: Function, place: int) -> list[int]:
    """List where a jump to a place may begin: every byte that could be one, so none is missed."""
    code = binary.code(function.start, function.end - function.start)
    found = []
    for at in range(len(code)):
        for length, form, is_jump in (
            (2, "<b", code[at] == 0xEB or 0x70 <= code[at] <= 0x7F),
            (5, "<i", code[at] == 0xE9),
            (6, "<i", code[at] == 0x0F and code[at + 1 : at + 2] >= b"\x80"),
        ):
            size = struct.calcsize(form)
            if is_jump and at + length <= len(code):
                (displacement,) = struct.unpack_from(form, code, at + length - size)
                if function.start + at + length + displacement == place:
                    found.append(function.start + at)
    return found
