"""What the guest's programs need to know of the running kernel and of its balloon device."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tracer.engine.libbpf import Btf
from tracer.engine.privilege import KERNEL_ADDRESSES, lacking, remedy_for
from tracer.errors import ProbeError
from tracer.record.machine import read_text
from tracer.sites.probes import Point

MODULE = "virtio_balloon"
DRIVER = Path("/sys/bus/virtio/drivers/virtio_balloon")
"""There while the balloon driver is loaded or built in."""

_VMEMMAP_DEFAULT = 0xFFFFEA0000000000
"""vmemmap without KASLR, four-level paging (Documentation/arch/x86/x86_64/mm.rst, since 2.6.24)."""
_STATS_VQ, _FREE_PAGE_HINT = 1, 3
"""Feature bits (include/uapi/linux/virtio_balloon.h)."""
_MEMBERS = (
    "vdev",
    "inflate_vq",
    "deflate_vq",
    "update_balloon_size_work",
    "num_pages",
    "num_pfns",
    "pfns",
)


@dataclass(slots=True)
class DriverLayout:
    """Offsets in the running kernel that the guest's programs are compiled with.

    Attributes:
        defines: Macros of bpf/guest_*.bpf.c.
        vmemmap_symbol: Address of the variable that holds vmemmap's base; 0 where there is none.
            It moves at each boot, so it is no macro.
        unreadable: Groups of points (the first word of their names) that there is no program for,
            with the reason.
    """

    defines: dict[str, int] = field(default_factory=dict)
    vmemmap_symbol: int = 0
    unreadable: dict[str, ProbeError] = field(default_factory=dict)

    def lacks(self, point: Point) -> ProbeError | None:
        """Why this point cannot be read here, and what mends that; None where it can."""
        return self.unreadable.get(point.name.partition("-")[0])


def driver_layout(btf: Btf) -> DriverLayout:
    """Read the offsets of the balloon driver's structures from BTF.

    Points that would tax every virtio device for nothing are left out: those of a queue that this
    device does not have.

    Raises:
        ProbeError: The kernel describes no struct virtio_balloon.
    """
    try:
        layout = DriverLayout(_offsets(btf, *_MEMBERS))
    except ProbeError as error:
        raise ProbeError(
            "cannot find the balloon driver's structures",
            reason=str(error.what),
            remedy=f"load the driver (modprobe {MODULE}) on a kernel with BTF for modules",
        ) from error
    device = _Device()
    _add_blocks(layout, btf, device)
    _add_stats(layout, btf, device)
    _add_acks(layout)
    return layout


class _Device:
    """The balloon device of this guest, as sysfs shows it."""

    def __init__(self) -> None:
        paths = sorted(DRIVER.glob("virtio*/features"))
        self._bits = (read_text(str(paths[0])) or "") if paths else ""

    def has(self, feature: int) -> bool:
        """Say whether a feature bit was negotiated; sysfs shows bit 0 first."""
        return self._bits[feature : feature + 1] == "1"


def _offsets(btf: Btf, *names: str) -> dict[str, int]:
    return {f"VB_{name.upper()}": btf.member_offset_bytes("virtio_balloon", name) for name in names}


def _add_blocks(layout: DriverLayout, btf: Btf, device: _Device) -> None:
    """Add what reports and hints need: their queues, and how a page becomes an address."""
    try:
        layout.vmemmap_symbol = _vmemmap_symbol()
        layout.defines.update(_blocks(btf))
    except ProbeError as error:
        layout.unreadable.update({"report": error, "hint": error})
        return
    try:
        report = _offsets(btf, "pr_dev_info", "reporting_vq")
        layout.defines.update({**report, "TRACE_REPORTS": 1})
    except ProbeError as error:
        layout.unreadable["report"] = error
    try:
        hint = _offsets(btf, "free_page_vq", "report_free_page_work")
    except ProbeError as error:
        layout.unreadable["hint"] = error
    else:
        if device.has(_FREE_PAGE_HINT):
            layout.defines.update({**hint, "TRACE_HINTS": 1})
        else:
            layout.unreadable["hint"] = ProbeError(
                "the device does not ask for free page hints",
                remedy="nothing, or start the VM with free-page-hint=on of its virtio-balloon",
            )


def _blocks(btf: Btf) -> dict[str, int]:
    return {
        "SG_BYTES": btf.struct_bytes("scatterlist"),
        "SG_PAGE_LINK": btf.member_offset_bytes("scatterlist", "page_link"),
        "SG_OFFSET": btf.member_offset_bytes("scatterlist", "offset"),
        "SG_LENGTH": btf.member_offset_bytes("scatterlist", "length"),
        "PAGE_STRUCT_BYTES": btf.struct_bytes("page"),
        "VMEMMAP_DEFAULT": _VMEMMAP_DEFAULT,
        "TRACE_BLOCKS": 1,
    }


def _add_stats(layout: DriverLayout, btf: Btf, device: _Device) -> None:
    try:
        stats = _offsets(btf, "stats_vq", "update_balloon_stats_work")
    except ProbeError as error:
        layout.unreadable["stats"] = error
        return
    if device.has(_STATS_VQ):
        layout.defines.update({**stats, "TRACE_STATS": 1})
    else:
        layout.unreadable["stats"] = ProbeError(
            "the device does not ask for statistics",
            remedy="nothing, or start the VM on a VMM whose balloon has a statistics queue",
        )


def _add_acks(layout: DriverLayout) -> None:
    """Add what tells whether a virtqueue holds something that the driver has not taken yet."""
    name = "vring_virtqueue"
    try:
        ring = Btf("virtio_ring")
        offsets = {
            "RING_PACKED": ring.member_offset_bytes(name, "packed_ring"),
            "RING_LAST_USED": ring.member_offset_bytes(name, "last_used_idx"),
            "RING_USED": ring.member_offset_bytes(name, "split", "vring", "used"),
        }
    except ProbeError as error:
        layout.unreadable["ack"] = error
    else:
        layout.defines.update({**offsets, "TRACE_ACKS": 1})


def kernel_symbol(name: str) -> int | None:
    """Look a kernel symbol up in /proc/kallsyms; None where it is missing or hidden (0)."""
    wanted = f" {name}\n"
    with Path("/proc/kallsyms").open() as symbols:
        for line in symbols:
            if line.endswith(wanted):
                return int(line.split()[0], 16) or None
    return None


def _vmemmap_symbol() -> int:
    """Address of the variable that holds vmemmap's base; KASLR moves it (since 4.8)."""
    address = kernel_symbol("vmemmap_base")
    if address is not None:
        return address
    if kernel_symbol("page_offset_base") is None and "nokaslr" in Path("/proc/cmdline").read_text():
        return 0
    missing = lacking(KERNEL_ADDRESSES)
    raise ProbeError(
        "the kernel does not show vmemmap_base, so blocks of pages have no address",
        remedy=remedy_for(missing) if missing else "sysctl kernel.kptr_restrict=1",
    )
