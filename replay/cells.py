"""What a calibration measures: one cell for each sort of call, what it finds and how long it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from replay.backings import BACKINGS
from replay.memory import rules_for
from replay.native.types import Effect
from replay.residency import Thp
from tracer.trace.schema import PAGE_BYTES

State = Literal["untouched", "emptied", "small", "full", "lazy", "split", "huge"]
"""What a call finds: nothing; nothing, where there is a page table; 4 KiB pages; the same while
this CPU's list of free pages is full (`replay.free_list`); 4 KiB pages that are to be freed later
already; pages of huge pages split before; huge pages. Memory of hugetlb knows the first and the
last."""

LENGTHS = (1, 2, 4, 8, 16, 32, 33, 34, 64, 128, 256, 512, 1024, 2048, 8192)
"""Pages of one call. 33 and 34 stand on both sides of the flush ceiling."""
FLUSHED_ONE_BY_ONE_PAGES = 33
"""Longer calls flush all (arch/x86/mm/tlb.c, tlb_single_page_flush_ceiling)."""
SPLIT_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Those that fill a huge page evenly: its memory goes with the last of them."""
HUGE_LENGTHS = (512, 1024, 2048, 8192)
FAR_LENGTHS = tuple(length for length in LENGTHS if length <= 128)
SHARES = (8, 512)
"""Ranges that share a process_madvise."""
UNIT_PAGES = 512
AREA_PAGES = (4096, 8192)
"""Memory of one cell: of short calls, and of those from 128 pages up."""


@dataclass(frozen=True)
class Kind:
    """A sort of call that plans make: its advice, and how many ranges share one; 1: one madvise."""

    advice: int
    ranges: int = 1


@dataclass(frozen=True)
class Cell:
    """One entry of the table.

    Args:
        kind: The call.
        state: What it finds.
        far: Calls jump about in memory; else each begins where the one before ended.
        pages: Length of each call, or of each range.
    """

    kind: Kind
    state: State
    far: bool
    pages: int


@dataclass(frozen=True)
class Conditions:
    """What the calibration must share with the runs that it shall predict.

    `cpu`, `sibling_cpus`, `resting_cpu` and `thp` are as in a run's job; `states` are those to
    measure, and `pages` is the longest call. `filler_pages` fill the list of free pages.
    """

    backing: str
    thp: Thp
    cpu: int | None
    sibling_cpus: tuple[int, ...]
    states: tuple[State, ...]
    pages: int
    filler_pages: int = 0
    resting_cpu: int | None = None


def cells_of(kind: Kind, conditions: Conditions) -> list[Cell]:
    """List what has to be measured to predict one kind of call.

    Lengths go one step beyond the longest call, so that nothing is guessed below 32 MiB.
    """
    effect = effect_of(kind, conditions.backing)
    needs = {"full": Effect.FREES, "lazy": Effect.FREES_LATER}
    return [
        Cell(kind, state, far, pages)
        for state in conditions.states
        if needs.get(state, effect) == effect
        for far in (False, True)
        for pages in _lengths(state, far, conditions.backing)
        if pages <= 2 * conditions.pages or pages == _lengths(state, far, conditions.backing)[0]
    ]


def effect_of(kind: Kind, backing: str) -> Effect:
    """What a call does to pages that it finds."""
    return Effect(rules_for(backing)[kind.advice].effect)


def _lengths(state: State, far: bool, backing: str) -> tuple[int, ...]:
    if state == "huge" or BACKINGS[backing].host_page_bytes > PAGE_BYTES:
        return () if far else HUGE_LENGTHS
    if state == "split":
        return () if far else SPLIT_LENGTHS
    return FAR_LENGTHS if far else LENGTHS


def area_pages(cell: Cell) -> int:
    """Memory that a cell's calls go over.

    Not always enough for a shared call to be full: of long ranges a few make the call's own part
    vanish as well as many do.
    """
    least = AREA_PAGES[0] if cell.pages < 128 else AREA_PAGES[1]
    return -(-max(least, cell.pages) // UNIT_PAGES) * UNIT_PAGES


def memory_pages(cells: Sequence[Cell], *, filled: bool = False) -> int:
    """Memory that all cells of a job take, resident at once; what calls fill counts if `filled`."""
    return sum(area_pages(cell) for cell in cells if filled or cell.state != "untouched")
