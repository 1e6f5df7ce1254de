"""Finds QEMU's balloon handlers, which are static, in a binary that may be stripped.

`virtio_balloon_handle_output` and `virtio_balloon_handle_report` serve the balloon's queues and
nothing else, so a probe inside them is never hit by another device. They are looked for by symbol
(.symtab, .dynsym), in the separate debug file, at the USDT note that lies inside, and last by what
cannot be stripped: the exported trace-state variables that the handlers test, the function bounds
of .eh_frame, and the one function that takes the address of both handlers to register the queues
(`virtio_balloon_device_realize`). Checked on Debian's QEMU 7.2 and 10.0.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from pathlib import Path

from tracer.elf import Binary, Function
from tracer.errors import SymbolError
from tracer.instructions import cheapest_site

HANDLERS = ("virtio_balloon_handle_output", "virtio_balloon_handle_report")
_STATE_VARIABLES = (
    "_TRACE_VIRTIO_BALLOON_HANDLE_OUTPUT_DSTATE",
    "_TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE",
)
_DEBUG_ROOT = Path("/usr/lib/debug/.build-id")
_LEA_BYTES = 3
"""Bytes of `lea disp32(%rip), %reg` before the displacement: REX, opcode 8D, ModRM."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One handler and the two instructions inside it that are probed.

    Attributes:
        name: The function's name in QEMU's source.
        way: How it was found: symtab, dynsym, debug file, usdt or recovered.
        function: Its bounds, ELF addresses.
        pop_site: Executed with rax = element (or 0) after `virtqueue_pop` returned.
        push_site: The call of `virtqueue_push(vq, element, length)`.
        pop_is_emulated: Whether the kernel emulates the instruction at `pop_site`; it single-steps
            the others, which costs about twenty times more (docs/measuring.md).
    """

    name: str
    way: str
    function: Function
    pop_site: int
    push_site: int
    pop_is_emulated: bool


def find_handlers(binary: Binary) -> tuple[Handler, ...]:
    """Find the handlers of the balloon's queues and the sites inside them.

    Returns:
        The in- and deflate handler first, then the report handler where this QEMU has one
        (free page reporting came with 5.1).

    Raises:
        SymbolError: The in- and deflate handler is not found, or more than one function fits.
    """
    output, way = _output_function(binary)
    handlers = [_with_sites(binary, HANDLERS[0], way, output)]
    report = _report_function(binary, output)
    if report is not None:
        # Without reports there is still all that the balloon itself does.
        with contextlib.suppress(SymbolError):
            handlers.append(_with_sites(binary, HANDLERS[1], report[1], report[0]))
    return tuple(handlers)


def queue_index_offset(binary: Binary) -> int:
    """Read the offset of `VirtQueue.queue_index` from the code of `virtio_get_queue_index`.

    The exported function is `return vq->queue_index;`, so its first instruction is
    `movzwl disp(%rdi), %eax` in every build looked at (QEMU 5.2 to 11.1).

    Raises:
        SymbolError: The function is missing or does not begin as expected.
    """
    address = binary.symbols.get("virtio_get_queue_index")
    if address is not None:
        code = binary.code(address, 11).removeprefix(b"\xf3\x0f\x1e\xfa")
        if code[:3] == b"\x0f\xb7\x47":
            return code[3]
        if code[:3] == b"\x0f\xb7\x87":
            return int(struct.unpack_from("<I", code, 3)[0])
    raise SymbolError(
        f"cannot tell the balloon's queues apart in {binary.path}",
        reason="virtio_get_queue_index is missing or has unknown code",
    )


def _output_function(binary: Binary) -> tuple[Function, str]:
    named = _by_symbol(binary, HANDLERS[0])
    if named is not None:
        return named
    if any(note.endswith(":virtio_balloon_handle_output") for note in binary.notes("stapsdt")):
        way = "usdt"
    else:
        way = "recovered"
    found = [
        function
        for function in _functions_referring(binary, _STATE_VARIABLES)
        if _calls_all(binary, function, ("virtqueue_pop", "virtqueue_push", "memory_region_find"))
    ]
    return _only(binary, HANDLERS[0], found), way


def _report_function(binary: Binary, output: Function) -> tuple[Function, str] | None:
    named = _by_symbol(binary, HANDLERS[1])
    if named is not None:
        return named
    found = {
        (handler.start, handler.end): handler
        for realize in _functions_taking_address(binary, output.start)
        for handler in _addresses_taken(binary, realize)
        if handler.start != output.start
        and _calls_all(
            binary, handler, ("virtqueue_pop", "virtqueue_push", "ram_block_discard_range")
        )
    }
    if not found:
        return None
    return _only(binary, HANDLERS[1], list(found.values())), "recovered"


def _by_symbol(binary: Binary, name: str) -> tuple[Function, str] | None:
    way = "symtab" if binary.has_symtab else "dynsym"
    address = binary.symbols.get(name)
    if address is None and binary.build_id is not None:
        way = "debug file"
        path = _DEBUG_ROOT / binary.build_id[:2] / f"{binary.build_id[2:]}.debug"
        if path.exists():
            debug = Binary(path)
            address = debug.symbols.get(name)
            debug.close()
    function = binary.function_at(address) if address is not None else None
    return None if function is None else (function, way)


def _only(binary: Binary, name: str, found: list[Function]) -> Function:
    if len(found) == 1:
        return found[0]
    places = ", ".join(f"{function.start:#x}" for function in found) or "no function fits"
    raise SymbolError(
        f"cannot find {name} in {binary.path}",
        reason=f"candidates: {places}",
        remedy="install the debug symbols of this QEMU build (its -dbgsym package)",
    )


def _functions_referring(binary: Binary, variables: tuple[str, ...]) -> list[Function]:
    found: dict[int, Function] = {}
    for name in variables:
        target = binary.symbols.get(name)
        for address in binary.references(target) if target is not None else ():
            function = binary.function_at(int(address))
            if function is not None:
                found[function.start] = function
    return list(found.values())


def _calls_all(binary: Binary, function: Function, names: tuple[str, ...]) -> bool:
    targets = [binary.symbols.get(name) for name in names]
    return all(target is not None and binary.calls(target, function) for target in targets)


def _functions_taking_address(binary: Binary, target: int) -> list[Function]:
    found: dict[int, Function] = {}
    for address in binary.references(target):
        is_lea = binary.code(int(address) - 2, 1) == b"\x8d"
        function = binary.function_at(int(address)) if is_lea else None
        if function is not None and _calls_all(binary, function, ("virtio_add_queue",)):
            found[function.start] = function
    return list(found.values())


def _addresses_taken(binary: Binary, inside: Function) -> list[Function]:
    """Return the functions whose start some `lea disp(%rip), %reg` inside the function takes."""
    code = binary.code(inside.start, inside.end - inside.start)
    found = []
    for at in range(len(code) - _LEA_BYTES - 3):
        # REX.W with any register extension, opcode 8D, ModRM of RIP-relative addressing.
        if code[at] & 0xF8 == 0x48 and code[at + 1] == 0x8D and code[at + 2] & 0xC7 == 0x05:
            (displacement,) = struct.unpack_from("<i", code, at + _LEA_BYTES)
            target = inside.start + at + _LEA_BYTES + 4 + displacement
            function = binary.function_at(target)
            if function is not None and function.start == target:
                found.append(function)
    return found


def _with_sites(binary: Binary, name: str, way: str, function: Function) -> Handler:
    pops = binary.calls(binary.symbols["virtqueue_pop"], function)
    pushes = binary.calls(binary.symbols["virtqueue_push"], function)
    if len(pops) != 1 or len(pushes) != 1:
        raise SymbolError(
            f"cannot place probes in {name} of {binary.path}",
            reason=f"it calls virtqueue_pop {len(pops)} and virtqueue_push {len(pushes)} times",
        )
    site, emulated = _after_pop(binary, pops[0])
    return Handler(name, way, function, site, pushes[0], emulated)


def _after_pop(binary: Binary, call: int) -> tuple[int, bool]:
    """Choose the instruction after a call of virtqueue_pop at which rax still holds the element.

    Compilers test the result at once: `[mov %rax, %reg]; test %rax, %rax; je`. A hit on the jump is
    by far the cheapest (tracer/instructions.py).
    """
    start = call + 5
    code = binary.code(start, 24)
    is_moved = code[0] in (0x48, 0x49) and code[1] == 0x89 and code[2] & 0xF8 == 0xC0
    at = 3 if is_moved else 0
    sites = [0, at + 3] if code[at : at + 3] == b"\x48\x85\xc0" else [0]
    return cheapest_site((start + site, code[site:]) for site in sites)
