"""Which pages have memory behind them when a replay begins: it decides what a discard costs.

An untouched page costs a quarter of a touched one, and a huge page a hundredth when discarded
whole, so a replay that ignores residency measures something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow.compute as pc

from replay.layout import Layout
from replay.ranges import Int64s, Runs, align_in, empty, intersect, merge, merge_sorted, subtract
from tracer.trace.errors import TraceError

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

HUGE_PAGES = 512
"""4 KiB pages in a transparent huge page of 2 MiB."""
MAX_PFN = 1 << 52

Assumption = Literal["trace", "all", "none"]
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


def load_residency(trace: Trace, layout: Layout, assumption: Assumption, thp: Thp) -> Residency:
    """Take residency from a trace, or assume it.

    Args:
        trace: Its first residency snapshot counts: what was there when the balloon began to move.
        layout: Translates the snapshot's PFNs.
        assumption: `trace` falls back to `all` where the trace has no snapshot.
        thp: Which of the resident pages are huge.

    Raises:
        TraceError: The snapshot holds impossible runs.
    """
    found = _loaded(trace, layout, assumption)
    if thp == "madvise":
        return found
    resident = merge_sorted(found.small, found.huge)
    huge = align_in(resident, HUGE_PAGES) if thp == "always" else empty()
    return Residency(subtract(resident, huge), huge, found.source)


def _loaded(trace: Trace, layout: Layout, assumption: Assumption) -> Residency:
    if assumption == "none":
        return Residency(empty(), empty(), "assumed: no page was resident")
    table = trace.table("residency")
    if assumption == "all" or table.num_rows == 0:
        reason = "" if assumption == "all" else " (the trace has no residency)"
        return Residency(layout.runs, empty(), f"assumed: every page was resident{reason}")
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
