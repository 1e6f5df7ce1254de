"""Huge pages of a replay's memory: how many there are, and what a run did to them."""

import re
from pathlib import Path

import numpy as np

from replay.native.types import Bytes
from replay.watched import HugePages

AREA = re.compile(r"([0-9a-f]+)-[0-9a-f]+ ")
"""First line of a mapping in /proc/self/smaps."""
UNIT_PAGES = 512
SPLITS = ("thp_split_page", "thp_split_pmd", "thp_deferred_split_page")
"""Counters of /proc/vmstat, of the whole machine (mm/vmstat.c)."""


def huge_bytes(base: int, size_bytes: int) -> int:
    """Bytes of anonymous huge pages in a part of this process; 0 where the kernel does not say.

    The interpreter's own large arrays may lie in huge pages too, so the process's sum is no use.

    Args:
        base: Host virtual address of the part's first byte.
        size_bytes: Its length.
    """
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    inside, total_bytes = False, 0
    for line in lines:
        if (area := AREA.match(line)) is not None:
            inside = base <= int(area[1], 16) < base + size_bytes
        elif inside and line.startswith("AnonHugePages:"):
            total_bytes += int(line.split()[1]) << 10
    return total_bytes


def machine_splits(root: Path = Path("/")) -> dict[str, int]:
    """Read the counters of `SPLITS`; one that this kernel does not have is left out.

    Args:
        root: Directory that holds proc; another one in tests.
    """
    try:
        lines = (root / "proc/vmstat").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if pair and pair[0] in SPLITS}


def huge_pages_of(
    before: Bytes, after: Bytes, resident: Bytes, splits: tuple[dict[str, int], dict[str, int]]
) -> HugePages:
    """Say what became of each huge page.

    Args:
        before: uint8[2 MiB units], 1 where a huge page was mapped (`replay.native.huge_units`).
        after: The same after the run.
        resident: uint8[4 KiB pages], what has memory behind it after the run.
        splits: `machine_splits` before and after.
    """
    left = resident[: len(after) * UNIT_PAGES].reshape(-1, UNIT_PAGES).any(axis=1)
    gone = before.astype(bool) & ~after.astype(bool)
    old, new = splits
    meanwhile = [
        new[name] - old[name] if {name} <= old.keys() & new.keys() else None for name in SPLITS
    ]
    return HugePages(
        before_pages=int(before.sum()) * UNIT_PAGES,
        after_pages=int(after.sum()) * UNIT_PAGES,
        freed_pages=int(np.count_nonzero(gone & ~left)) * UNIT_PAGES,
        split_pages=int(np.count_nonzero(gone & left)) * UNIT_PAGES,
        machine_splits=meanwhile[0],
        machine_pmd_splits=meanwhile[1],
        machine_deferred_splits=meanwhile[2],
    )
