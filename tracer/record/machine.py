"""What a trace says of the kernel that it was recorded on."""

from __future__ import annotations

import mmap
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

from tracer.engine.attach import Attachment
from tracer.trace.manifest import ProbeRecord, SideInfo

_DEVICE_BITS = 24
_FEATURES = {
    0: "MUST_TELL_HOST",
    1: "STATS_VQ",
    2: "DEFLATE_ON_OOM",
    3: "FREE_PAGE_HINT",
    4: "PAGE_POISON",
    5: "REPORTING",
}
_BALLOON_COUNTERS = ("balloon_inflate", "balloon_deflate", "balloon_migrate")


def clock_anchor() -> tuple[int, int]:
    """Read CLOCK_MONOTONIC and CLOCK_REALTIME as nearly at once as can be, in ns."""
    before = time.monotonic_ns()
    realtime = time.time_ns()
    return (before + time.monotonic_ns()) // 2, realtime


def read_text(path: str) -> str | None:
    """Return a small file's text without its final newline, or None where it cannot be read."""
    try:
        # A process may name itself in no encoding at all.
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def thp_setting() -> str | None:
    """Return the transparent-huge-page setting in force: always, madvise or never."""
    text = read_text("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    return text.partition("[")[2].partition("]")[0] or None


def cpu_model() -> str | None:
    """Return the CPU's own name, or None where there is none: only x86 kernels tell it."""
    lines = (read_text("/proc/cpuinfo") or "").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or None


def balloon_counters() -> dict[str, int]:
    """Read the guest kernel's own count of ballooned pages from /proc/vmstat (since 3.15).

    Returns:
        vmstat name to 4 KiB pages; counters this kernel lacks are left out.
    """
    pairs = (line.split() for line in (read_text("/proc/vmstat") or "").splitlines())
    return {name: int(value) for name, value in pairs if name in _BALLOON_COUNTERS}


def balloon_features() -> tuple[str, ...] | None:
    """Name the feature bits that this guest's driver negotiated, or None without a balloon.

    Bits below 24 are the device's own (include/uapi/linux/virtio_balloon.h, 6.12); the transport's
    are left out. sysfs shows them as a string of 0 and 1, bit 0 first (drivers/virtio/virtio.c).
    """
    for path in sorted(Path("/sys/bus/virtio/drivers/virtio_balloon").glob("virtio*/features")):
        bits = read_text(str(path)) or ""
        own = [bit for bit, value in enumerate(bits[:_DEVICE_BITS]) if value == "1"]
        return tuple(_FEATURES.get(bit, f"bit {bit}") for bit in own)
    return None


def side_info(
    *,
    begin: tuple[int, int],
    end: tuple[int, int] | None,
    detail: str,
    probes: Iterable[ProbeRecord],
    counters: dict[str, int],
) -> SideInfo:
    """Describe this kernel's side of a capture.

    Args:
        begin: Clock anchor taken when every probe was attached.
        end: Clock anchor taken when the first probe was detached; None while recording.
        detail: requests, discards or calls.
        probes: What became of each probe point.
        counters: Counts of the kernel and the device, before and after.
    """
    return SideInfo(
        page_size_bytes=mmap.PAGESIZE,
        begin_ns=begin[0],
        end_ns=None if end is None else end[0],
        kernel_release=platform.release(),
        arch=platform.machine(),
        cpus=os.cpu_count(),
        cpu_model=cpu_model(),
        boot_id=read_text("/proc/sys/kernel/random/boot_id"),
        thp=thp_setting(),
        realtime_anchors=(begin,) if end is None else (begin, end),
        detail=detail,
        probes=tuple(probes),
        counters=counters,
    )


def probe_record(attachment: Attachment, cost_ns: float | None, hits: int | None) -> ProbeRecord:
    """Turn what became of a point into its row in the manifest.

    Args:
        attachment: The point and the way it was reached.
        cost_ns: Measured cost of one hit, or None.
        hits: How often it fired, or None where nobody counts.
    """
    way = attachment.way
    if way is None:
        return ProbeRecord(attachment.point.name, "", "", "failed", attachment.reason)
    return ProbeRecord(
        point=attachment.point.name,
        way=way.kind.value,
        target=way.target,
        status="attached",
        reason=attachment.reason,
        cost_ns=cost_ns,
        hits=hits,
    )
