"""Finds QEMU's balloon handlers, which are static, in a binary that may be stripped.

They serve the balloon's queues and nothing else, so a probe inside them is never hit by another
device. They are looked for by symbol (.symtab, .dynsym), in the separate debug file, at the USDT
note that lies inside, and last by what cannot be stripped: the exported trace-state variables that
the first handler tests, the function bounds of .eh_frame, the one function that takes the address
of the handlers to register the queues (`virtio_balloon_device_realize`), and the exported functions
that each handler calls. Checked on Debian's QEMU 7.2 and 10.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import SymbolError
from tracer.sites.elf import Binary, Function
from tracer.sites.handler_sites import find_sites
from tracer.trace.schema import Queue

HANDLERS = (
    "virtio_balloon_handle_output",
    "virtio_balloon_handle_report",
    "virtio_balloon_receive_stats",
    "get_free_page_hints",
)
"""Names in QEMU's source, in the order of enum aerostat_handler of bpf/records.h."""

_QUEUES = (Queue.INFLATE, Queue.REPORTING, Queue.STATS, Queue.FREE_PAGE_HINT)
_STATE_VARIABLES = (
    "_TRACE_VIRTIO_BALLOON_HANDLE_OUTPUT_DSTATE",
    "_TRACE_VIRTIO_BALLOON_BAD_ADDR_DSTATE",
)
_SERVES = ("virtqueue_pop", "virtqueue_push")
_DISCARDS = ("ram_block_discard_range", "memory_region_find", "qemu_guest_free_page_hint")
_DEBUG_ROOT = Path("/usr/lib/debug/.build-id")
_REMEDY = "install the debug symbols of this QEMU build (its -dbgsym package)"


@dataclass(frozen=True, slots=True)
class Handler:
    """One handler and the two instructions inside it that are probed.

    Attributes:
        name: One of HANDLERS.
        queue: The queue it serves; INFLATE stands for in- and deflate, which share a handler and
            are told apart by the queue's index.
        way: How it was found: symtab, dynsym, debug file, usdt or recovered.
        function: Bounds of the code that holds the sites, ELF addresses. QEMU's function of that
            name, or the one that the compiler put it into.
        pop_site: Executed with rax = element (or 0) after `virtqueue_pop` returned; of free page
            hints where a popped element leads alone, since QEMU polls that queue.
        push_site: The call of `virtqueue_push(vq, element, length)`. None for statistics: QEMU
            keeps that element until it wants the next one, and a timer's function returns it
            (`balloon_stats_poll_cb`).
        pop_is_emulated: Whether the kernel emulates the instruction at `pop_site`; it single-steps
            the others, which costs about twenty times more (docs/measuring.md).
    """

    name: str
    queue: Queue
    way: str
    function: Function
    pop_site: int
    push_site: int | None
    pop_is_emulated: bool


@dataclass(frozen=True, slots=True)
class Handlers:
    """What was found in one QEMU.

    Attributes:
        found: In the order of HANDLERS; the in- and deflate handler is always there.
        missing: Name of each other handler to why it was not found: this QEMU has none (free page
            hints came with 4.0, reports with 5.1), or more than one function fits.
    """

    found: tuple[Handler, ...]
    missing: Mapping[str, str]


def find_handlers(binary: Binary) -> Handlers:
    """Find the handlers of the balloon's queues and the sites inside them.

    Raises:
        SymbolError: The in- and deflate handler is not found, or more than one function fits; the
            candidates are named.
    """
    output, way = _output_function(binary)
    found, missing = [_handler(binary, 0, output, way)], {}
    siblings = _siblings(binary, output)
    for number in range(1, len(HANDLERS)):
        try:
            function, way = _other_function(binary, number, siblings)
            found.append(_handler(binary, number, function, way))
        except SymbolError as error:
            # Without this one there is still all that the balloon itself does.
            missing[HANDLERS[number]] = f"{error.what}: {error.reason}"
    return Handlers(tuple(found), missing)


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


def _handler(binary: Binary, number: int, function: Function, way: str) -> Handler:
    queue = _QUEUES[number]
    sites = find_sites(
        binary,
        HANDLERS[number],
        function,
        pushes=queue is not Queue.STATS,
        # While hints are wanted, a bottom half pops again and again (virtio-balloon.c, since 4.0).
        polls=queue is Queue.FREE_PAGE_HINT,
    )
    return Handler(
        HANDLERS[number], queue, way, function, sites.pop, sites.push, sites.pop_is_emulated
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
        if _calls_all(binary, function, (*_SERVES, "memory_region_find"))
    ]
    return _only(binary, HANDLERS[0], found), way


def _other_function(binary: Binary, number: int, siblings: list[Function]) -> tuple[Function, str]:
    named = _by_symbol(binary, HANDLERS[number])
    if named is not None:
        return named
    if _QUEUES[number] is Queue.REPORTING:
        fits = [f for f in siblings if _calls_all(binary, f, ("ram_block_discard_range",))]
    elif _QUEUES[number] is Queue.STATS:
        fits = [
            function
            for function in siblings
            if _calls_all(binary, function, ("iov_to_buf_full",))
            and not any(_calls_all(binary, function, (name,)) for name in _DISCARDS)
        ]
    else:
        # Inlined into the bottom half that the queue's own handler schedules, or called by it.
        hint = binary.symbols.get("qemu_guest_free_page_hint")
        callers = _functions_at(binary, binary.references(hint) if hint is not None else ())
        fits = [f for f in callers if _calls_all(binary, f, (*_SERVES, _DISCARDS[-1]))]
    return _only(binary, HANDLERS[number], fits), "recovered"


def _siblings(binary: Binary, output: Function) -> list[Function]:
    """Return the other queue functions that are registered with this one and pop themselves."""
    found: dict[int, Function] = {}
    for realize in _functions_taking_address(binary, output.start):
        for function in binary.addresses_taken(realize):
            if function.start != output.start and _calls_all(binary, function, _SERVES):
                found[function.start] = function
    return list(found.values())


def _by_symbol(binary: Binary, name: str) -> tuple[Function, str] | None:
    """Look a handler up by name; a function that was inlined away, or pops nothing, is none."""
    way = "symtab" if binary.has_symtab else "dynsym"
    addresses = binary.addresses(name)
    if not addresses and binary.build_id is not None:
        way = "debug file"
        path = _DEBUG_ROOT / binary.build_id[:2] / f"{binary.build_id[2:]}.debug"
        if path.exists():
            debug = Binary(path)
            addresses = debug.addresses(name)
            debug.close()
    functions = [binary.function_at(address) for address in addresses]
    fits = [f for f in functions if f is not None and _calls_all(binary, f, _SERVES)]
    return (_only(binary, name, fits), way) if fits else None


def _only(binary: Binary, name: str, found: list[Function]) -> Function:
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(f"{function.start:#x}" for function in found)
        reason = f"{len(found)} functions fit: {places}"
    else:
        reason = "no function fits"
    raise SymbolError(f"cannot find {name} in {binary.path}", reason=reason, remedy=_REMEDY)


def _functions_referring(binary: Binary, variables: tuple[str, ...]) -> list[Function]:
    found: dict[int, Function] = {}
    for name in variables:
        target = binary.symbols.get(name)
        hits = binary.references(target) if target is not None else ()
        found |= {function.start: function for function in _functions_at(binary, hits)}
    return list(found.values())


def _functions_at(binary: Binary, addresses: Iterable[int]) -> list[Function]:
    functions = (binary.function_at(int(address)) for address in addresses)
    return list({f.start: f for f in functions if f is not None}.values())


def _calls_all(binary: Binary, function: Function, names: tuple[str, ...]) -> bool:
    targets = [binary.symbols.get(name) for name in names]
    return all(target is not None and binary.calls(target, function) for target in targets)


def _functions_taking_address(binary: Binary, target: int) -> list[Function]:
    leas = [a for a in binary.references(target) if binary.code(int(a) - 2, 1) == b"\x8d"]
    return [
        function
        for function in _functions_at(binary, leas)
        if _calls_all(binary, function, ("virtio_add_queue",))
    ]
