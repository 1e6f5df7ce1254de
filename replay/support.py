"""What this machine's kernel cannot do of a plan, found out before anything is timed."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from replay import native
from replay.backings import CALLS, Advice
from replay.plan import Plan
from replay.ranges import Runs, expand
from tracer.trace.schema import PFN_SHIFT

SINCE = {Advice.FREE: "4.5", Advice.POPULATE_WRITE: "5.14"}
VECTOR_SINCE = "6.13"
"""Before it, process_madvise took only advice that keeps content, COLD, PAGEOUT and WILLNEED."""


def unsupported(plan: Plan, root: Path = Path("/")) -> str | None:
    """Say what the kernel lacks for a plan; None where it lacks nothing.

    Each advice of the plan is tried on a page of this process, because distributions carry changes
    to older kernels.

    Args:
        plan: Any plan.
        root: Directory that holds proc; another one in tests.
    """
    release = platform.release()
    for advice in map(Advice, np.unique(plan.advice).tolist()):
        if advice in SINCE and (error := native.lacking(advice)) is not None:
            return (
                f"this kernel ({release}) has no MADV_{advice.name} ({error});"
                f" Linux {SINCE[advice]} and later have it"
            )
    if plan.joined is not None:
        for advice in map(Advice, np.unique(plan.advice[plan.joined]).tolist()):
            if advice not in CALLS and (error := native.lacking(advice, vector=True)) is not None:
                return (
                    f"this kernel ({release}) does not let a process give itself {advice.name}"
                    f" through process_madvise ({error}); Linux {VECTOR_SINCE} and later do"
                )
    return _too_many_mappings(plan, root)


def _too_many_mappings(plan: Plan, root: Path) -> str | None:
    needed = 2 * remapped_stretches(plan)
    if needed == 0:
        return None
    try:
        limit = int((root / "proc/sys/vm/max_map_count").read_text())
        own = len((root / "proc/self/maps").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if needed + own <= limit:
        return None
    return (
        f"it splits guest memory into up to {needed} mappings;"
        f" a process may have {limit} (vm.max_map_count)"
    )


def remapped_stretches(plan: Plan) -> int:
    """Count the stretches of remapped memory, apart from each other: the most at any time."""
    chosen = np.flatnonzero(plan.advice == Advice.REMAP)
    if len(chosen) == 0:
        return 0
    page = (plan.offset_bytes[chosen] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    pages = (plan.length_bytes[chosen] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    never = len(chosen)
    since = np.full(int((page + pages).max()) + 1, never, np.int64)
    # Assigned backwards, so that the first operation on each page counts.
    since[expand(Runs(page, pages))[::-1]] = np.repeat(np.arange(never), pages)[::-1]
    begun = np.bincount(since, minlength=never + 1)[:never]
    joined = np.bincount(np.maximum(since[1:], since[:-1]), minlength=never + 1)[:never]
    return int(np.cumsum(begun - joined).max())
