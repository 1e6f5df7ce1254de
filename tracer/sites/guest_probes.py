"""Where the guest's probes go in the running kernel, and how they are attached."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tracer.engine import decode
from tracer.engine.attach import Attach, Attachment, attach_all
from tracer.engine.libbpf import UNLISTED, Btf
from tracer.engine.loader import Program
from tracer.engine.privilege import LOAD, require
from tracer.errors import REPORT, ProbeError
from tracer.guest_side.guest_cost import GuestCost
from tracer.guest_side.guest_events import GUEST_EVENT
from tracer.sites.guest_layout import DRIVER, MODULE, DriverLayout, driver_layout
from tracer.sites.probes import GUEST_POINTS, Kind, Point, Way
from tracer.trace.errors import AerostatError

RINGS = {
    "requests": decode.GUEST_REQUEST,
    "singles": decode.GUEST_SINGLE,
    "events": GUEST_EVENT,
}
"""Record of each ring."""
_USUAL_BYTES = {"requests": 4 << 20, "singles": 4 << 20, "events": 1 << 20}
"""3700 requests of 256 pages, 37,000 of one page as compaction sends them, 14,000 hints."""
SOURCES = (
    "guest_threads.bpf.c",
    "guest_requests.bpf.c",
    "guest_blocks.bpf.c",
    "guest_events.bpf.c",
)
MODULES = (MODULE, "virtio_ring")
"""Modules whose functions are probed, where they are modules."""
_ALWAYS_KPROBES = ("on_target_enter", "on_target_exit")
"""Programs that are kprobes whatever the others were compiled for, at functions of one name."""


class Count(IntEnum):
    """Indices of the map `counters`: enum guest_count of bpf/records.h."""

    LOST_REQUESTS = 0
    LOST_EVENTS = 1
    LOST_MARKS = 2
    LOST_INFLATE_PAGES = 3
    LOST_DEFLATE_PAGES = 4
    HIT_TELL = 5
    HIT_REPORT = 6
    HIT_KICK = 7
    HIT_ACK = 8
    HIT_HINT = 9
    HIT_HINT_ID = 10
    HIT_HINT_BLOCK = 11
    HIT_STATS = 12


@dataclass(frozen=True, slots=True)
class KernelSymbol:
    """Where a function of the kernel is: `module` is None for the kernel's own."""

    address: int
    module: str | None


def ring_sizes(each_bytes: int | None = None) -> dict[str, int]:
    """Say how large each ring is to be, in bytes.

    Args:
        each_bytes: Of every ring, a power of two of pages; None for what is usual.
    """
    return {name: each_bytes or usual for name, usual in _USUAL_BYTES.items()}


def compile_guest(
    layout: DriverLayout, *, fentry: bool, ring_bytes: Mapping[str, int] | None = None
) -> Program:
    """Compile bpf/guest_*.bpf.c for the running kernel, as fentry or as kprobe programs.

    Args:
        layout: Of the driver.
        fentry: Which of the two.
        ring_bytes: Size of each ring; the usual ones where None.

    Raises:
        BccError: BCC is missing or refuses.
        ProbeError: The kernel makes no rings of these sizes.
    """
    defines = dict(layout.defines)
    if fentry:
        defines["FENTRY"] = 1
    program = Program(SOURCES, defines, ring_bytes or ring_sizes())
    if "TRACE_BLOCKS" in defines:
        symbol = program["vmemmap_symbol"]
        symbol[0] = symbol.Leaf(layout.vmemmap_symbol)
    return program


def readable_points(layout: DriverLayout) -> tuple[Point, ...]:
    """Return the points that the program has code for with this layout."""
    return tuple(point for point in GUEST_POINTS if layout.lacks(point) is None)


def attach_guest(
    program: Program, layout: DriverLayout, mechanisms: Mapping[Kind, Attach]
) -> list[Attachment]:
    """Attach the probes of the balloon driver.

    Raises:
        ProbeError: tell_host cannot be probed.
    """
    attached = attach_all(program, readable_points(layout), mechanisms)
    lacking = ((point, layout.lacks(point)) for point in GUEST_POINTS)
    return attached + [Attachment(point, None, lack.what) for point, lack in lacking if lack]


def guest_mechanisms(layout: DriverLayout, *, fentry: bool | None) -> Mapping[Kind, Attach]:
    """How each kind of guest probe is attached.

    Args:
        layout: Of the driver.
        fentry: True or False for a program that was compiled for one of the two and is attached so
            alone; None for one that was compiled for fentry, where each point that fentry does not
            reach is to be reached by kprobe.
    """

    def trampoline(program: Program, way: Way) -> None:
        described = [btf for btf in map(Btf, MODULES) if btf.function_id(way.target) is not None]
        if not described:
            reason = "not in the kernel's BTF"
            raise ProbeError(f"cannot attach to {way.target}", reason=reason, remedy=UNLISTED)
        program.attach_fentry(
            way.program, described[0], way.target, at_return=way.kind is Kind.FEXIT
        )

    def kprobe(program: Program, way: Way) -> None:
        at_return = way.kind is Kind.KRETPROBE
        if way.program in _ALWAYS_KPROBES:
            _attach_everywhere(program, way, at_return=at_return)
            return
        if fentry:
            raise ProbeError(
                f"cannot attach to {way.target}",
                reason="fentry is insisted on",
                remedy="leave --probes out",
            )
        symbol = unambiguous(way.target, kernel_symbols().get(way.target, ()))
        if fentry is None:
            program.switch(way.program, dict(layout.defines))
        program.attach_kprobe(way.program, symbol, at_return=at_return)

    kprobes: dict[Kind, Attach] = {Kind.KPROBE: kprobe, Kind.KRETPROBE: kprobe}
    if fentry is False:
        return kprobes
    return {Kind.FENTRY: trampoline, Kind.FEXIT: trampoline} | kprobes


def _attach_everywhere(program: Program, way: Way, *, at_return: bool) -> None:
    """Attach to every function of these names: the program itself knows the balloon's calls."""
    places = [place for name in way.target.split("|") for place in kernel_symbols().get(name, ())]
    if not places:
        reason = "the kernel has no such function"
        raise ProbeError(f"cannot attach to {way.target}", reason=reason, remedy=REPORT)
    for place in places:
        program.attach_kprobe(
            way.program, f"{place.address:x}", at_return=at_return, address=place.address
        )


@functools.cache
def kernel_symbols() -> dict[str, tuple[KernelSymbol, ...]]:
    """Find every kernel function of the names that guest points have, in one pass."""
    ways = [way for point in GUEST_POINTS for way in point.ways]
    wanted = {name for way in ways for name in way.target.split("|")}
    found: dict[str, tuple[KernelSymbol, ...]] = {}
    with Path("/proc/kallsyms").open() as symbols:
        for line in symbols:
            address, _, name, *module = line.split()
            if name in wanted:
                place = KernelSymbol(int(address, 16), module[0].strip("[]") if module else None)
                found[name] = (*found.get(name, ()), place)
    return found


def unambiguous(name: str, places: tuple[KernelSymbol, ...]) -> str:
    """Choose the name by which a kprobe reaches the driver's function and no other.

    Args:
        name: A kernel function.
        places: Where functions of this name are.

    Returns:
        The name, with its module where other parts of the kernel have one of the same name.

    Raises:
        ProbeError: The driver's own cannot be told from the others; they are named.
    """
    own = [place for place in places if place.module in MODULES]
    if len(places) <= 1:
        return name
    if len(own) == 1:
        return f"{own[0].module}:{name}"
    candidates = ", ".join(f"{p.address:#x} in {p.module or 'the kernel'}" for p in places)
    raise ProbeError(
        f"cannot tell which function {name} is the balloon driver's",
        reason=f"{len(places)} have this name: {candidates}",
        remedy="use fentry, which knows the driver's own",
    )


@dataclass(frozen=True, slots=True)
class Driver:
    """The balloon driver of the running kernel, probed.

    Attributes:
        program: bpf/guest_*.bpf.c, loaded; closing it detaches.
        attached: What became of each probe point.
        cost: Measures what they cost, from the moment they are attached.
        ring_bytes: Size of each ring.
    """

    program: Program
    attached: list[Attachment]
    cost: GuestCost
    ring_bytes: Mapping[str, int]


def attach_driver(*, fentry: bool | None = None, ring_bytes: int | None = None) -> Driver:
    """Compile and attach the guest's probes, each by fentry where the kernel takes it, else kprobe.

    Args:
        fentry: True or False to insist on one of the two.
        ring_bytes: Size of each ring, a power of two of pages; None for what is usual.

    Raises:
        MissingPrivilegeError: Not root, no BCC, no BTF, no balloon driver, no rings of this size,
            or neither way attaches.
    """
    require("the balloon driver", LOAD)
    if not DRIVER.exists():
        raise ProbeError(
            "this machine has no virtio balloon",
            reason=f"{DRIVER} is absent",
            remedy="run inside a guest, or record a VM from its host with --pid",
        )
    layout, sizes = driver_layout(Btf(MODULE)), ring_sizes(ring_bytes)
    program = compile_guest(layout, fentry=fentry is not False, ring_bytes=sizes)
    try:
        attached = attach_guest(program, layout, guest_mechanisms(layout, fentry=fentry))
        return Driver(program, attached, GuestCost(program, attached), sizes)
    except AerostatError:
        program.close()
        raise
