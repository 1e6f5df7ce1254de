"""Foretells stage d of a plan from a calibration table, its calls and what they will find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from replay.backings import BACKINGS
from replay.cells import FLUSHED_ONE_BY_ONE_PAGES, SHARES, UNIT_PAGES, Cell, Kind, State
from replay.free_list import CALL_PAGES
from replay.memory import operations_of, rules_for
from replay.native import pacing
from replay.ranges import align_out, empty, merge_sorted
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT

if TYPE_CHECKING:
    from replay.native.types import Bytes
    from replay.plan import Context, Plan
    from replay.residency import Residency
    from replay.results import FreeList

Floats = npt.NDArray[np.float64]
Curve = tuple[Floats, Floats]
"""Lengths in pages, and ns of a call of each."""


class Table:
    """A calibration, looked up: medians over its processes.

    Args:
        samples: For each cell what the processes measured, in ns of a call.
        free_list: What pages cost over as much memory as is freed, which goes before what cells
            tell of it; None where little is freed.
    """

    def __init__(
        self, samples: Mapping[Cell, Sequence[float]], free_list: FreeList | None = None
    ) -> None:
        self.room_pages = 0 if free_list is None else free_list.pages
        points: dict[tuple[Kind, State, bool], dict[int, float]] = defaultdict(dict)
        for cell, values in samples.items():
            points[cell.kind, cell.state, cell.far][cell.pages] = float(np.median(values))
        self._surplus_ns = {key[0]: at.pop(0) for key, at in points.items() if 0 in at}
        self._curves = {key: _curve(at) for key, at in points.items() if at}
        if free_list is not None:
            self._level(free_list)

    def _level(self, free_list: FreeList) -> None:
        """Bring what long calls cost to what the sweep found, and shorter ones by as much a page.

        A part of a call's time goes with the call, which cells of long calls agree on, and a part
        with each page, which is the sweep's less the former of its own calls. A page costs the same
        in a shared call.
        """
        levels: dict[State, float] = {
            "small": free_list.within_ns,
            "full": free_list.beyond_ns,
        }
        lines = {
            (kind, state): _line(curve)
            for (kind, state, far), curve in self._curves.items()
            # Of short calls alone a page's own part is little.
            if state in levels and not far and np.count_nonzero(curve[0] >= CALL_PAGES) >= 2
        }
        for (kind, state), (of_call_ns, of_page_ns) in lines.items():
            if kind.advice != free_list.advice:
                continue
            swept_ns, _ = lines.get((Kind(kind.advice), state), (of_call_ns, 0.0))
            found_ns = levels[state] - swept_ns / CALL_PAGES
            for key in ((kind, state, False), (kind, state, True)):
                if key in self._curves:
                    lengths, times_ns = self._curves[key]
                    shorter_ns = times_ns + (found_ns - of_page_ns) * lengths
                    longer_ns = of_call_ns + found_ns * lengths
                    leveled_ns = np.where(lengths < CALL_PAGES, shorter_ns, longer_ns)
                    self._curves[key] = lengths, leveled_ns

    def has(self, kind: Kind) -> bool:
        """Whether calls of this kind were measured."""
        return (kind, "untouched", False) in self._curves

    def call_ns(
        self, kind: Kind, state: State, far: npt.NDArray[np.bool_], pages: Floats
    ) -> Floats:
        """Time of calls of given lengths, linear between the lengths measured."""
        near = _between(self._curves[kind, state, False], pages)
        jumps = self._curves.get((kind, state, True))
        if jumps is None:
            return near
        # Beyond the longest jump measured a jump costs what it cost there.
        reach = np.minimum(pages, jumps[0][-1])
        surplus = _between(jumps, reach) - _between(self._curves[kind, state, False], reach)
        return near + np.where(far, surplus, 0.0)

    def splitting_ns(self, kind: Kind) -> float:
        """What the call that splits a huge page takes more than those after it."""
        return self._surplus_ns.get(kind, 0.0)

    def has_state(self, kind: Kind, state: State) -> bool:
        """Whether calls that find this were measured."""
        return (kind, state, False) in self._curves


def _curve(at: Mapping[int, float]) -> Curve:
    lengths = sorted(at)
    return np.array(lengths, np.float64), np.array([at[length] for length in lengths])


def _line(curve: Curve) -> tuple[float, float]:
    """Give ns of a call that flushes all, and of each of its pages where they are many.

    The first is told by calls of some dozens of pages, where it is still seen.
    """
    lengths, times_ns = (values[curve[0] > FLUSHED_ONE_BY_ONE_PAGES] for values in curve)
    # Weights: what a sample errs by is a share of it.
    of_call_ns = max(0.0, float(np.polyfit(lengths, times_ns, 1, w=1 / lengths)[1]))
    of_page_ns = (times_ns - of_call_ns) / lengths
    return of_call_ns, float(np.median(of_page_ns[lengths >= CALL_PAGES]))


def _between(curve: Curve, pages: Floats) -> Floats:
    """Linear between neighbours; beyond the longest at the rate of the last stretch."""
    lengths, times_ns = curve
    inside: Floats = np.interp(pages, lengths, times_ns)
    if len(lengths) < 2:
        inside *= np.maximum(pages / lengths[-1], 1.0)
        return inside
    slope = float(times_ns[-1] - times_ns[-2]) / (lengths[-1] - lengths[-2])
    inside += np.maximum(pages - lengths[-1], 0.0) * max(slope, 0.0)
    return inside


@dataclass(frozen=True, eq=False)
class Foreseen:
    """A plan's calls as they will find memory; one element an operation.

    Args:
        advice: `Advice`.
        pages: Length.
        ranges: Ranges in the call that the operation belongs to.
        far: Its pages do not touch those of the operation before.
        found: `replay.native.pacing.FOUND`.
    """

    advice: npt.NDArray[np.uint8]
    pages: Floats
    ranges: npt.NDArray[np.int64]
    far: npt.NDArray[np.bool_]
    found: npt.NDArray[np.void]

    @property
    def freed_pages(self) -> int:
        """What the plan frees, huge pages left out."""
        return int(self.found["freed_pages"].sum())

    def beyond(self, room_pages: int) -> npt.NDArray[np.int64]:
        """Count each operation's pages that the list of free pages has no room for.

        It is taken to be empty at first, for memory was just populated from it.
        """
        freed = self.found["freed_pages"].astype(np.int64)
        held = np.cumsum(freed - self.found["taken_pages"])
        beyond: npt.NDArray[np.int64] = np.clip(held - room_pages, 0, freed)
        return beyond

    @property
    def kinds(self) -> list[Kind]:
        """What must be calibrated to predict the plan."""
        shared = self.ranges > 1
        alone = {Kind(int(advice)) for advice in np.unique(self.advice[~shared])}
        vectors = {Kind(int(a), n) for a in np.unique(self.advice[shared]) for n in SHARES}
        return sorted(alone | vectors, key=lambda kind: (kind.advice, kind.ranges))


def initial_state(residency: Residency, size_pages: int) -> Bytes:
    """Residency as one state a page, for `foresee`.

    Where a unit of 2 MiB has small pages it has a page table too, which a call on its other pages
    must walk.
    """
    state = np.zeros(-(-size_pages // UNIT_PAGES) * UNIT_PAGES, np.uint8)
    for runs, value in ((residency.small, pacing.SMALL), (residency.huge, pacing.HUGE)):
        for start, pages in zip(runs.start.tolist(), runs.pages.tolist(), strict=True):
            state[start : start + pages] = value
    units = state.reshape(-1, UNIT_PAGES)
    has_table = (units == pacing.SMALL).any(axis=1)[:, np.newaxis]
    units[has_table & (units == 0)] = pacing.EMPTIED
    return state[:size_pages]


def foresee(plan: Plan, context: Context, residency: Residency) -> Foreseen:
    """Work out what every operation of a plan will find."""
    operations = operations_of(plan)
    unit = BACKINGS[context.backing].host_page_bytes
    size_bytes = -(-context.layout.memory_bytes // unit) * unit
    huge_only = unit > PAGE_BYTES
    if huge_only:
        # A host page is resident where any of its pages is.
        resident = merge_sorted(residency.small, residency.huge)
        residency = replace(residency, small=empty(), huge=align_out(resident, UNIT_PAGES))
    state = initial_state(residency, size_bytes >> PFN_SHIFT)
    rules = rules_for(context.backing)
    found = pacing.foresee(size_bytes, operations, rules, state, huge_only=huge_only)
    offset, length = operations.offset_bytes, operations.length_bytes
    far = np.ones(len(plan), bool)
    far[1:] = (offset[1:] + length[1:] != offset[:-1]) & (offset[:-1] + length[:-1] != offset[1:])
    return Foreseen(
        operations.advice,
        (length >> np.uint64(PFN_SHIFT)).astype(np.float64),
        _ranges(operations.joined, len(plan)),
        far,
        found,
    )


def _ranges(joined: Bytes | None, count: int) -> npt.NDArray[np.int64]:
    if joined is None or not count:
        return np.ones(count, np.int64)
    call = np.cumsum(joined == 0) - 1
    sizes: npt.NDArray[np.int64] = np.bincount(call)[call]
    return sizes


def predict_ns(foreseen: Foreseen, table: Table) -> float | None:
    """Foretell stage d.

    Returns:
        ns, or None where the table lacks a kind of call.
    """
    if not all(table.has(kind) for kind in foreseen.kinds):
        return None
    total_ns = 0.0
    for advice in np.unique(foreseen.advice).tolist():
        alone = (foreseen.advice == advice) & (foreseen.ranges == 1)
        shared = (foreseen.advice == advice) & (foreseen.ranges > 1)
        if alone.any():
            total_ns += float(_operations_ns(foreseen, alone, Kind(advice), table).sum())
        if shared.any():
            total_ns += _shared_ns(foreseen, shared, advice, table)
    return total_ns


def _shared_ns(
    foreseen: Foreseen, chosen: npt.NDArray[np.bool_], advice: int, table: Table
) -> float:
    """Ranges of shared calls: a part of each range, and a part of each call that its ranges share.

    So a range's time is linear in one over the ranges of its call.
    """
    few, many = SHARES
    of_few = _operations_ns(foreseen, chosen, Kind(advice, few), table)
    of_many = _operations_ns(foreseen, chosen, Kind(advice, many), table)
    place = (1 / foreseen.ranges[chosen] - 1 / many) / (1 / few - 1 / many)
    return float((of_many + (of_few - of_many) * place).sum())


def _operations_ns(
    foreseen: Foreseen, chosen: npt.NDArray[np.bool_], kind: Kind, table: Table
) -> Floats:
    """Time of each chosen operation: what it would take on nothing, and more for what it finds."""
    pages, far, found = foreseen.pages[chosen], foreseen.far[chosen], foreseen.found[chosen]
    beyond = foreseen.beyond(table.room_pages)[chosen]
    bare_ns = table.call_ns(kind, "untouched", far, pages)
    total_ns = bare_ns.copy()
    for state in ("small", "lazy", "split", "huge", "emptied"):
        if not table.has_state(kind, state):
            continue
        there = found[f"{state}_pages"].astype(np.float64)
        hit = there > 0
        # A huge page goes whole whatever lies around it, so its price is that of its own length.
        length = there[hit] if state == "huge" else pages[hit]
        full_ns = table.call_ns(kind, state, far[hit], length)
        empty_ns = table.call_ns(kind, "untouched", far[hit], length)
        total_ns[hit] += (full_ns - empty_ns) * there[hit] / length
    hit = beyond > 0
    if table.has_state(kind, "full") and hit.any():
        with_room_ns = table.call_ns(kind, "small", far[hit], pages[hit])
        without_ns = table.call_ns(kind, "full", far[hit], pages[hit])
        total_ns[hit] += (without_ns - with_room_ns) * beyond[hit] / pages[hit]
    return total_ns + found["splits"] * table.splitting_ns(kind)
