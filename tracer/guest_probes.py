"""Where the guest's probes go in the running kernel, and how they are attached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracer.attach import Attach, Attachment, attach_all
from tracer.errors import ProbeError
from tracer.libbpf import Btf
from tracer.loader import Program
from tracer.privilege import LOAD, require
from tracer.probes import GUEST_POINTS, Kind, Point, Way
from tracer.trace.errors import AerostatError

RING_BYTES = 4 << 20
LOST_REQUESTS, HIT_TELL, HIT_REPORT, HIT_KICK, HIT_ACK = range(5)
"""Indices of the map `counters` of bpf/guest.bpf.c."""

MODULE = "virtio_balloon"
DRIVER = Path("/sys/bus/virtio/drivers/virtio_balloon")
"""There while the balloon driver is loaded or built in."""
MODULES = (MODULE, "virtio_ring")
"""Modules whose functions are probed, where they are modules."""
_PAGE_BYTES = 4096
_VMEMMAP_DEFAULT = 0xFFFFEA0000000000
"""vmemmap without KASLR, four-level paging (Documentation/arch/x86/x86_64/mm.rst, since 2.6.24)."""


@dataclass(frozen=True, slots=True)
class DriverLayout:
    """Offsets in the running kernel that the guest program is compiled with.

    Attributes:
        defines: Macros of bpf/guest.bpf.c.
        reports: Whether free page reports can be read.
        reason: Why they cannot.
    """

    defines: dict[str, int] = field(default_factory=dict)
    reports: bool = True
    reason: str = ""


def kernel_symbol(name: str) -> int | None:
    """Look a kernel symbol up in /proc/kallsyms; None where it is missing or hidden (0)."""
    wanted = f" {name}\n"
    with Path("/proc/kallsyms").open() as symbols:
        for line in symbols:
            if line.endswith(wanted):
                return int(line.split()[0], 16) or None
    return None


def driver_layout(btf: Btf) -> DriverLayout:
    """Read the offsets of the balloon driver's structures from BTF.

    Raises:
        ProbeError: The kernel describes no struct virtio_balloon.
    """
    try:
        defines = {
            f"VB_{name.upper()}": btf.member_offset_bytes("virtio_balloon", name)
            for name in ("inflate_vq", "deflate_vq", "num_pfns", "pfns")
        }
    except ProbeError as error:
        raise ProbeError(
            "cannot find the balloon driver's structures",
            reason=str(error.what),
            remedy=f"load the driver (modprobe {MODULE}) on a kernel with BTF for modules",
        ) from error
    try:
        report = {
            "VB_PR_DEV_INFO": btf.member_offset_bytes("virtio_balloon", "pr_dev_info"),
            "VB_REPORTING_VQ": btf.member_offset_bytes("virtio_balloon", "reporting_vq"),
            "SG_BYTES": btf.struct_bytes("scatterlist"),
            "SG_PAGE_LINK": btf.member_offset_bytes("scatterlist", "page_link"),
            "SG_OFFSET": btf.member_offset_bytes("scatterlist", "offset"),
            "SG_LENGTH": btf.member_offset_bytes("scatterlist", "length"),
            "PAGE_STRUCT_BYTES": btf.struct_bytes("page"),
            "VMEMMAP_SYMBOL": _vmemmap_symbol(),
            "VMEMMAP_DEFAULT": _VMEMMAP_DEFAULT,
            "TRACE_REPORTS": 1,
        }
    except ProbeError as error:
        return DriverLayout(defines, reports=False, reason=error.what)
    return DriverLayout({**defines, **report})


def _vmemmap_symbol() -> int:
    """Address of the variable that holds vmemmap's base; KASLR moves it (since 4.8)."""
    address = kernel_symbol("vmemmap_base")
    if address is not None:
        return address
    if kernel_symbol("page_offset_base") is None and "nokaslr" in Path("/proc/cmdline").read_text():
        return 0
    raise ProbeError("the kernel does not show vmemmap_base, so reported pages have no address")


def compile_guest(layout: DriverLayout, *, fentry: bool) -> Program:
    """Compile bpf/guest.bpf.c for the running kernel, as fentry or as kprobe programs.

    Raises:
        BccError: BCC is missing or refuses.
    """
    defines = {"REQUESTS_PAGES": RING_BYTES // _PAGE_BYTES, **layout.defines}
    if fentry:
        defines["FENTRY"] = 1
    return Program(("guest.bpf.c",), defines)


def readable_points(layout: DriverLayout) -> tuple[Point, ...]:
    """Return the points that the program has code for with this layout."""
    return tuple(
        point for point in GUEST_POINTS if layout.reports or not point.name.startswith("report-")
    )


def attach_guest(program: Program, layout: DriverLayout, *, fentry: bool) -> list[Attachment]:
    """Attach the probes of the balloon driver.

    Raises:
        ProbeError: tell_host cannot be probed.
    """
    points = readable_points(layout)
    attached = attach_all(program, points, guest_mechanisms(fentry=fentry))
    missing = (point for point in GUEST_POINTS if point not in points)
    return attached + [Attachment(point, None, layout.reason) for point in missing]


def guest_mechanisms(*, fentry: bool) -> Mapping[Kind, Attach]:
    """How each kind of guest probe is attached; a program is compiled for one family of them."""

    def trampoline(program: Program, way: Way) -> None:
        described = [btf for btf in map(Btf, MODULES) if btf.function_id(way.target) is not None]
        if not described:
            raise ProbeError(f"cannot attach to {way.target}", reason="not in the kernel's BTF")
        program.attach_fentry(
            way.program, described[0], way.target, at_return=way.kind is Kind.FEXIT
        )

    def kprobe(program: Program, way: Way) -> None:
        program.attach_kprobe(way.program, way.target, at_return=way.kind is Kind.KRETPROBE)

    if fentry:
        return {Kind.FENTRY: trampoline, Kind.FEXIT: trampoline}
    return {Kind.KPROBE: kprobe, Kind.KRETPROBE: kprobe}


@dataclass(frozen=True, slots=True)
class Driver:
    """The balloon driver of the running kernel, probed.

    Attributes:
        program: bpf/guest.bpf.c, loaded; closing it detaches.
        attached: What became of each probe point.
    """

    program: Program
    attached: list[Attachment]


def attach_driver(*, fentry: bool | None = None) -> Driver:
    """Compile and attach the guest's probes, by fentry where the kernel takes it, else by kprobe.

    Args:
        fentry: True or False to insist on one of the two.

    Raises:
        MissingPrivilegeError: Not root, no BCC, no BTF, no balloon driver, or neither way attaches.
    """
    require("the balloon driver", LOAD)
    if not DRIVER.exists():
        raise ProbeError(
            "this machine has no virtio balloon",
            reason=f"{DRIVER} is absent",
            remedy="run inside a guest, or record a VM from its host with --pid",
        )
    layout = driver_layout(Btf(MODULE))
    refused: AerostatError | None = None
    for trampoline in (True, False) if fentry is None else (fentry,):
        program = compile_guest(layout, fentry=trampoline)
        try:
            return Driver(program, attach_guest(program, layout, fentry=trampoline))
        except AerostatError as error:
            program.close()
            refused = error
    raise refused or ProbeError("no way to attach the driver's probes")
