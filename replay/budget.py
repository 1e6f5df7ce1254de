"""How much memory a replay may take, and how a trace is cut down to it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay.layout import Layout
from replay.ranges import Runs, intersect, merge
from replay.requests import Requests
from replay.residency import Residency
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES, Queue

MARGIN_BYTES = 256 << 20
"""Left to the rest of the machine: the worker's interpreter, its arrays, page tables."""
PAGE_TABLE_SHARE = 512
"""A page table of 4 KiB maps 512 pages."""


@dataclass(frozen=True)
class Fitted:
    """A trace cut to what fits. `reason` is empty when nothing had to be cut."""

    requests: Requests
    residency: Residency
    reason: str


def available_bytes(root: Path = Path("/")) -> int:
    """Read how much memory this process can still take: MemAvailable and every cgroup above it.

    Args:
        root: Directory that holds proc and sys; another one in tests.

    Raises:
        AerostatError: /proc/meminfo does not say.
    """
    try:
        fields = (root / "proc/meminfo").read_text().split()
        available = int(fields[fields.index("MemAvailable:") + 1]) << 10
    except (OSError, ValueError, IndexError) as error:
        raise AerostatError(
            "cannot tell how much memory is available",
            reason=str(error),
            remedy="state it with --memory-limit",
        ) from error
    return max(min([available, *_cgroup_rooms(root)]), 0)


def _cgroup_rooms(root: Path) -> list[int]:
    """Bytes left in this process's cgroup (version 2) and in each one above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    paths = [line[3:] for line in lines if line.startswith("0::")]
    top = root / "sys/fs/cgroup"
    rooms = []
    for path in paths:
        directory = top / path.lstrip("/")
        for group in (directory, *directory.parents):
            if not group.is_relative_to(top):
                break
            rooms += _room(group)
    return rooms


def _room(group: Path) -> list[int]:
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        return [] if limit == "max" else [int(limit) - used]
    except (OSError, ValueError):
        return []


def needed_bytes(residency: Residency, layout: Layout) -> int:
    """Memory that a run takes: its resident pages, their page tables, two bytes a page of state."""
    pages = residency.resident_pages
    return pages * PAGE_BYTES + pages * PAGE_BYTES // PAGE_TABLE_SHARE + 2 * layout.memory_pages


def fit(requests: Requests, residency: Residency, layout: Layout, allowed_bytes: int) -> Fitted:
    """Cut requests and residency to what `allowed_bytes` can hold.

    First the pages that no request names are left untouched; if that is not enough, only the
    longest prefix of requests whose pages fit is kept.

    Raises:
        AerostatError: Not even the first request that names pages fits.
    """
    needed = needed_bytes(residency, layout)
    if needed <= allowed_bytes:
        return Fitted(requests, residency, "")
    count = _longest_prefix(requests, residency, layout, allowed_bytes)
    if count == 0:
        raise AerostatError(
            f"not enough memory to replay: {needed} bytes are needed, {allowed_bytes} may be used",
            reason="not even the first request's pages fit",
            remedy="free memory, raise --memory-limit, or replay on a larger machine",
        )
    kept = requests.before(count)
    reason = (
        f"the trace needs {needed} bytes of memory, {allowed_bytes} may be used: "
        f"{count} of {len(requests)} requests are replayed, and only pages they name are resident"
    )
    return Fitted(kept, _named_only(kept, residency, layout), reason)


def _longest_prefix(
    requests: Requests, residency: Residency, layout: Layout, allowed_bytes: int
) -> int:
    low, high = 0, len(requests)
    while low < high:
        middle = (low + high + 1) // 2
        named = _named_only(requests.before(middle), residency, layout)
        if needed_bytes(named, layout) <= allowed_bytes:
            low = middle
        else:
            high = middle - 1
    # A prefix without a single page would be a replay of nothing.
    return low if requests.before(low).pages.sum() else 0


def _named_only(requests: Requests, residency: Residency, layout: Layout) -> Residency:
    named = named_pages(requests, layout)
    return Residency(
        intersect(residency.small, named), intersect(residency.huge, _whole_huge(named)), ""
    )


def _whole_huge(named: Runs) -> Runs:
    first = named.start // 512
    last = (named.start + named.pages - 1) // 512
    return merge(first * 512, (last - first + 1) * 512)


def named_pages(requests: Requests, layout: Layout) -> Runs:
    """Pages of the replayed memory that inflate, deflate or reporting requests name."""
    pfn, pages, _ = requests.runs_of(Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
    first = np.where(pages < 0, pfn + pages + 1, pfn)
    pieces = layout.clip(first, np.abs(pages))
    return merge(pieces.page, pieces.pages)
