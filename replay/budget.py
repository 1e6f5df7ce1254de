"""How much memory a replay may take, and how a trace is cut down to it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay.layout import Layout
from replay.ranges import Runs, align_out, intersect, merge, merge_sorted, rising
from replay.requests import Requests
from replay.residency import Residency
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES, Queue

MARGIN_BYTES = 256 << 20
"""Left to the rest of the machine: the worker's interpreter, its arrays, page tables."""
PAGE_TABLE_SHARE = 512
"""A page table of 4 KiB maps 512 pages."""


ACCOUNT_BYTES = 24
"""A page of guest memory, resident or not: who owned it since when, and what it must hold."""

PLANNING_BYTES = 96
"""A page of inflate or deflate, while all strategies are planned: 79 were measured."""


@dataclass(frozen=True)
class Demand:
    """What a page of guest memory takes.

    Args:
        unit_pages: Pages of the host page; where one is resident, all are.
        copies: Pages of memory for each: 2 where a private copy of a file's page lies beside it.
        fills: Deflated pages become resident (`populate`).
    """

    unit_pages: int = 1
    copies: int = 1
    fills: bool = False


SMALL_PAGES = Demand()


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


def huge_pool_bytes(root: Path = Path("/")) -> int:
    """Read how many bytes of huge pages of 2 MiB can be had: free ones, and those over the pool.

    Args:
        root: Directory that holds sys; another one in tests.

    Raises:
        AerostatError: There are none.
    """
    pool = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    names = ("nr_hugepages", "free_hugepages", "nr_overcommit_hugepages", "surplus_hugepages")
    try:
        count, free, beyond, surplus = (int((pool / name).read_text()) for name in names)
    except (OSError, ValueError) as error:
        raise AerostatError(
            "this machine has no huge pages of 2 MiB",
            reason=str(error),
            remedy="choose another --backing",
        ) from error
    pages = free + max(beyond - surplus, 0)
    if pages == 0:
        raise AerostatError(
            "no huge page of 2 MiB is free",
            reason=f"{count} are reserved, {free} of them are free (hugepages-2048kB in /sys)",
            remedy="as root reserve some, `echo 1024 > /proc/sys/vm/nr_hugepages` for 2 GiB,"
            " and give them back with 0 afterwards; or choose another --backing",
        )
    return pages << 21


def require_planning(requests: Requests) -> None:
    """Refuse requests of so many pages that planning them would not fit; a file of them is small.

    Raises:
        AerostatError: It would not fit.
    """
    balloon = np.isin(requests.queue, (Queue.INFLATE, Queue.DEFLATE))
    pages = int(requests.pages[balloon].sum())
    allowed_bytes = available_bytes()
    if pages * PLANNING_BYTES > allowed_bytes:
        raise AerostatError(
            f"not enough memory to plan {pages:,} balloon pages",
            reason=f"planning takes about {in_words(pages * PLANNING_BYTES)},"
            f" {in_words(allowed_bytes)} are available",
            remedy="free memory, or work on a machine that has more",
        )


def within(spare_bytes: int, limit_bytes: int | None) -> int:
    """What may be used of what there is; a limit of None is none, and 0 leaves nothing."""
    return spare_bytes if limit_bytes is None else min(spare_bytes, limit_bytes)


def require_account(layout: Layout, limit_bytes: int | None) -> None:
    """Refuse memory so large that keeping account of its pages would not fit, before any of it.

    Args:
        layout: The memory.
        limit_bytes: The user's limit.

    Raises:
        AerostatError: It would not fit.
    """
    allowed_bytes = within(available_bytes() - MARGIN_BYTES, limit_bytes)
    account_bytes = layout.memory_pages * ACCOUNT_BYTES
    if account_bytes > allowed_bytes:
        raise AerostatError(
            f"not enough memory to replay {in_words(layout.memory_bytes)} of guest memory",
            reason=f"keeping account of its pages takes {in_words(account_bytes)},"
            f" {in_words(max(allowed_bytes, 0))} may be used",
            remedy="free memory, raise --memory-limit, or replay on a larger machine;"
            " `aerostat whatif` counts without memory",
        )


def needed_bytes(
    requests: Requests, residency: Residency, layout: Layout, demand: Demand = SMALL_PAGES
) -> int:
    """Memory that a run takes: resident pages, their page tables, two bytes a page of state."""
    resident = merge_sorted(residency.small, residency.huge)
    if demand.fills:
        resident = merge_sorted(resident, named_pages(requests, layout, Queue.DEFLATE))
    pages = align_out(resident, demand.unit_pages).total_pages * demand.copies
    return pages * PAGE_BYTES + pages * PAGE_BYTES // PAGE_TABLE_SHARE + 2 * layout.memory_pages


def fit(
    requests: Requests,
    residency: Residency,
    layout: Layout,
    allowed_bytes: int,
    demand: Demand = SMALL_PAGES,
) -> Fitted:
    """Cut requests and residency to what `allowed_bytes` can hold.

    First the pages that no request names are left untouched; if that is not enough, only the
    longest prefix of requests whose pages fit is kept.

    Raises:
        AerostatError: Not even the first request that names pages fits.
    """
    whole_bytes = needed_bytes(requests, residency, layout, demand)
    if whole_bytes <= allowed_bytes:
        return Fitted(requests, residency, "")
    low, high = 0, len(requests)
    while low < high:
        middle = (low + high + 1) // 2
        part = requests.before(middle)
        resident = _named_only(part, residency, layout)
        if needed_bytes(part, resident, layout, demand) <= allowed_bytes:
            low = middle
        else:
            high = middle - 1
    kept = requests.before(low)
    if not kept.pages.sum():  # a prefix without a single page would be a replay of nothing
        raise AerostatError(
            f"not enough memory to replay: {in_words(whole_bytes)} are needed,"
            f" {in_words(allowed_bytes)} may be used",
            reason="not even the first request's pages fit",
            remedy="free memory, raise --memory-limit, or replay on a larger machine",
        )
    short = (
        f"the trace needs {in_words(whole_bytes)} of memory, {in_words(allowed_bytes)} may be used"
    )
    cut = (
        f"{low:,} of {len(requests):,} requests are replayed, and only pages they name are resident"
    )
    if low == len(requests):
        cut = "all requests are replayed, but pages that none of them names stay untouched"
    return Fitted(kept, _named_only(kept, residency, layout), f"{short}: {cut}")


def in_words(size_bytes: int) -> str:
    """Write a size for a message."""
    unit, shift = ("GiB", 30) if size_bytes >= 1 << 30 else ("MiB", 20)
    return f"{size_bytes / (1 << shift):,.1f} {unit}"


def _named_only(requests: Requests, residency: Residency, layout: Layout) -> Residency:
    named = named_pages(requests, layout)
    huge = intersect(residency.huge, _whole_huge(named))
    return Residency(intersect(residency.small, named), huge, residency.source)


def _whole_huge(named: Runs) -> Runs:
    first = named.start // 512
    last = (named.start + named.pages - 1) // 512
    return merge(first * 512, (last - first + 1) * 512)


def named_pages(requests: Requests, layout: Layout, *queues: Queue) -> Runs:
    """Pages of the replayed memory that requests name.

    Args:
        requests: The requests.
        layout: The memory.
        queues: Those that count; inflate, deflate and reporting when left out.
    """
    wanted = queues or (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
    pfn, pages, _ = requests.runs_of(*wanted)
    # Merged before they are cut: reports that each span all regions would give pieces by the
    # product of both.
    pieces = layout.clip(*merge(*rising(pfn, pages)))
    return merge(pieces.page, pieces.pages)
