"""Which operations of a trace found memory that no snapshot shows: the guest had written it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from replay.calibrate import calibrate
from replay.cells import UNIT_PAGES, Conditions, Kind, State
from replay.native.types import Effect
from replay.plan import Context, Plan
from replay.predict import Table
from replay.ranges import merge
from replay.recorded import Calls, pages_of
from replay.requests import Requests
from replay.residency import Residency
from tracer.trace.schema import PFN_SHIFT, Queue

if TYPE_CHECKING:
    from tracer.trace.reader import Trace

Flags = npt.NDArray[np.bool_]
CALIBRATION_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Case:
    """A trace made ready to be run."""

    trace: Trace
    requests: Requests
    context: Context
    plan: Plan
    residency: Residency
    calls: Calls | None
    note: str

    @property
    def queue(self) -> npt.NDArray[np.uint8]:
        """Queue of each operation."""
        return self.requests.queue[self.plan.request]

    @property
    def frees(self) -> Flags:
        """Operations that give memory back."""
        effects = self.context.memory.advice_with(Effect.FREES, Effect.FREES_LATER)
        return np.isin(self.plan.advice, effects)


def written_operations(case: Case, cpu: int) -> Flags:
    """Operations whose pages the guest had written, as their recorded times tell.

    The border is half-way, on a logarithmic scale, between what such a call costs here on nothing
    and on memory: on huge pages where it is long enough for those. A long call dearer than that met
    4 KiB pages, nobody knows how many, and so does one where the balloon took single pages before:
    both are left as the replay itself finds them.
    """
    assert case.calls is not None
    pages = pages_of(case.plan)
    kind = Kind(int(case.context.discard))
    states: tuple[State, ...] = ("untouched", "small", "huge")
    states = states if case.context.backing == "anon" else states[:2]
    conditions = Conditions(case.context.backing, "madvise", cpu, (), states, int(pages.max()))
    table = Table(calibrate([kind], conditions, CALIBRATION_ROUNDS, seed=1))
    length, near = pages.astype(np.float64), np.zeros(len(pages), bool)
    low_ns = table.call_ns(kind, "untouched", near, length)
    high_ns = table.call_ns(kind, "small", near, length)
    least_ns, most_ns = np.sqrt(low_ns * np.maximum(high_ns, low_ns)), np.full(len(pages), np.inf)
    if table.has_state(kind, "huge"):
        whole = pages % UNIT_PAGES == 0
        huge_ns = np.maximum(table.call_ns(kind, "huge", near, length), low_ns)
        least_ns = np.where(whole, np.sqrt(low_ns * huge_ns), least_ns)
        most_ns = np.where(whole, np.sqrt(huge_ns * high_ns), most_ns)
    recorded_ns = case.calls.mean_ns
    found: Flags = case.frees & (recorded_ns >= least_ns) & (recorded_ns < most_ns)
    return found & ~_over_pieces(case)


def alike_calls(case: Case, queue: Queue, written: Flags) -> Flags:
    """Calls of a queue whose times compare: of what had memory, or no discards, of one length.

    Args:
        case: The trace.
        queue: The queue.
        written: `written_operations`.

    Returns:
        Those of its most frequent length.
    """
    of_queue = case.queue == queue
    discards = of_queue & case.frees
    chosen: Flags = discards & written if discards.any() else of_queue
    if not chosen.any():
        return chosen
    lengths, counts = np.unique(case.plan.length_bytes[chosen], return_counts=True)
    alike: Flags = chosen & (case.plan.length_bytes == lengths[counts.argmax()])
    return alike


def _over_pieces(case: Case) -> Flags:
    """Operations of 2 MiB and more over pages that shorter ones discard at some time."""
    first = (case.plan.offset_bytes >> np.uint64(PFN_SHIFT)).astype(np.int64)
    pages = pages_of(case.plan)
    short = case.frees & (pages < UNIT_PAGES)
    pieces = merge(first[short], pages[short])
    if not len(pieces.start):
        return np.zeros(len(pages), bool)
    next_piece = np.minimum(np.searchsorted(pieces.end, first, side="right"), len(pieces.end) - 1)
    meets = (pieces.start[next_piece] < first + pages) & (pieces.end[next_piece] > first)
    over: Flags = meets & (pages >= UNIT_PAGES)
    return over
