"""Which pages have memory behind them when a replay begins: it decides what a discard costs.

An untouched page costs a quarter of a touched one, and a huge page a hundredth when discarded
whole, so a replay that ignores residency measures something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from replay.layout import Layout
from replay.ranges import Int64s, Runs, align_in, empty, intersect, merge, merge_sorted, subtract
from tracer.trace.errors import AerostatError, TraceError

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

HUGE_PAGES = 512
"""4 KiB pages in a transparent huge page of 2 MiB."""
MAX_PFN = 1 << 52

RESIDENCY = re.compile(r"trace|touched|untouched|huge|1/([1-9][0-9]{0,8})")
"""`trace`: as recorded. The others are chosen: every page, none, every page in huge pages as far as
they fit, or the first of every N pages."""
Thp = Literal["never", "madvise", "always"]
"""Where anonymous memory is in huge pages: nowhere; where the trace saw them, as if the VMM had
advised those alone; or wherever 2 MiB are resident, and more may form during a run."""


@dataclass(frozen=True, eq=False)
class Residency:
    """Resident pages of the replayed memory, as runs of 4 KiB pages.

    Args:
        small: Backed by 4 KiB pages.
        huge: Backed by whole, aligned 2 MiB pages.
        source: Where this comes from, in words for the reader of a result.
    """

    small: Runs
    huge: Runs
    source: str

    @property
    def resident_pages(self) -> int:
        """4 KiB pages in all."""
        return self.small.total_pages + self.huge.total_pages


def check_residency(residency: str, backing: str, thp: Thp) -> None:
    """Refuse a residency that does not exist, or that this memory cannot have.

    Args:
        residency: See `RESIDENCY`.
        backing: A name in `BACKINGS`.
        thp: Which of the resident pages are huge.

    Raises:
        AerostatError: With what to choose instead.
    """
    if RESIDENCY.fullmatch(residency) is None:
        raise AerostatError(
            f"there is no residency {residency!r}",
            remedy="choose trace, touched, untouched, huge, or 1/N such as 1/8",
        )
    if residency == "huge" and backing == "anon" and thp == "never":
        raise AerostatError(
            "memory cannot be resident in huge pages and have none",
            remedy="--residency touched, or --thp madvise",
        )
    if residency == "huge" and backing not in ("anon", "hugetlb"):
        raise AerostatError(
            f"{backing} memory cannot be made resident in huge pages here",
            reason="huge pages are asked for in anonymous memory and hugetlb alone",
            remedy="--residency touched, or --backing anon",
        )


def load_residency(trace: Trace, layout: Layout, residency: str, thp: Thp) -> Residency:
    """Take residency from a trace, or as it is chosen.

    Args:
        trace: Its first residency snapshot counts: what was there when the balloon began to move.
        layout: Translates the snapshot's PFNs.
        residency: `trace` (`touched` where the trace has no snapshot), `touched`, `untouched`,
            `1/N` or `huge`; see `RESIDENCY`.
        thp: Which of the resident pages are huge.

    Raises:
        AerostatError: There is no such residency.
        TraceError: The snapshot holds impossible runs.
    """
    match = RESIDENCY.fullmatch(residency)
    if match is None:
        check_residency(residency, "anon", thp)
    table = trace.table("residency") if residency == "trace" else None
    if table is not None and table.num_rows:
        found = _recorded(trace, layout, table)
    else:
        found = _chosen(layout, residency, int(match[1]) if match and match[1] else 1)
    if thp == "madvise":
        return found
    resident = merge_sorted(found.small, found.huge)
    huge = align_in(resident, HUGE_PAGES) if thp == "always" else empty()
    return Residency(subtract(resident, huge), huge, found.source)


def _chosen(layout: Layout, residency: str, every: int) -> Residency:
    if residency == "untouched":
        return Residency(empty(), empty(), "chosen: no page was resident")
    if residency == "huge":
        huge = align_in(layout.runs, HUGE_PAGES)
        small = subtract(layout.runs, huge)
        return Residency(small, huge, "chosen: every page was resident, in huge pages")
    if every > 1:
        page = np.concatenate(
            [
                np.arange(start, end, every)
                for start, end in zip(layout.runs.start, layout.runs.end, strict=True)
            ]
        )
        spread = Runs(page.astype(np.int64), np.ones(len(page), np.int64))
        return Residency(spread, empty(), f"chosen: one page in {every:,} was resident")
    source = "chosen: every page was resident"
    if residency == "trace":
        source = "assumed: every page was resident (the trace has no residency)"
    return Residency(layout.runs, empty(), source)


def _recorded(trace: Trace, layout: Layout, table: pa.Table) -> Residency:
    table = table.filter(pc.equal(table["ts_ns"], pc.min(table["ts_ns"])))
    table = table.filter(table["resident"])
    pfn, pages = table["pfn"].to_numpy(), table["pages"].to_numpy()
    if (pfn >= MAX_PFN).any() or (pages > MAX_PFN).any():
        raise TraceError(
            f"the residency of {trace.path} cannot be replayed",
            reason="a run lies beyond every 64-bit address",
            remedy="take the trace again; check_trace in tracer.trace.check lists what is wrong",
        )
    resident = _in_memory(layout, pfn.astype(np.int64), pages.astype(np.int64))
    is_huge = pc.fill_null(table["huge"], False).to_numpy().astype(bool)
    marked = _in_memory(layout, pfn[is_huge].astype(np.int64), pages[is_huge].astype(np.int64))
    huge = align_in(intersect(marked, resident), HUGE_PAGES)
    return Residency(subtract(resident, huge), huge, "as recorded in the trace")


def _in_memory(layout: Layout, pfn: Int64s, pages: Int64s) -> Runs:
    pieces = layout.clip(*merge(pfn, pages))
    return merge(pieces.page, pieces.pages)
