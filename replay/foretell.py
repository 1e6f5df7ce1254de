"""Before a replay runs: calibrate what its plans need, and foretell each plan's stage d."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.calibrate import calibrate
from replay.cells import Cell, Conditions, Kind, State
from replay.free_list import FEW_PAGES, SweepJob, measure_free_list
from replay.predict import Foreseen, Table, foresee, predict_ns
from replay.results import CalibrationPoint, FreeList
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent

if TYPE_CHECKING:
    from replay.plan import Context, Plan
    from replay.residency import Residency, Thp

ROUNDS = 3
"""Processes of each kind of call: the table takes their median."""
ROUNDS_BESIDE_SIBLINGS = 7
"""A flush waits for siblings, and they wait for their CPU: single samples lie far apart."""
MOST_FILLER_PAGES = 1 << 18
"""What is freed before `full` is measured, at most, where the list was not seen to fill."""


@dataclass(frozen=True)
class Session:
    """What the calibration shares with the runs; all as in a run's job. `seed` is of its order."""

    thp: Thp
    cpu: int | None
    sibling_cpus: tuple[int, ...]
    seed: int
    resting_cpu: int | None = None


@dataclass(frozen=True)
class Foretold:
    """What was foretold.

    Args:
        discard_ns: Stage d of each plan, in their order; None where it cannot be foretold.
        calibration: The table.
        free_list: `replay.free_list`; None where too little is freed to ask.
        notes: For each plan why it was not foretold; empty where it was.
    """

    discard_ns: tuple[int | None, ...]
    calibration: tuple[CalibrationPoint, ...]
    free_list: FreeList | None = None
    notes: tuple[str, ...] = ()


def foretell(
    plans: Sequence[Plan],
    context: Context,
    residency: Residency,
    session: Session,
    progress: Progress = silent,
) -> Foretold:
    """Calibrate under the conditions of the runs, and foretell stage d of every plan.

    The table knows lengths, states and orders of calls; nothing of the trace is run for it.

    Args:
        plans: What will be run.
        context: The memory.
        residency: What will be resident.
        session: What the runs will be like.
        progress: Told of each process of the calibration.
    """
    foreseen = [foresee(plan, context, residency) if plan.threads == 1 else None for plan in plans]
    wanted = [each for each in foreseen if each is not None and len(each.pages)]
    kinds = sorted({kind for each in wanted for kind in each.kinds}, key=_key)
    longest = max((int(each.pages.max()) for each in wanted), default=0)
    freed_pages = max((each.freed_pages for each in wanted), default=0)
    free_list, is_much = None, freed_pages >= FEW_PAGES
    steps = itertools.count(1)
    rounds = ROUNDS_BESIDE_SIBLINGS if session.sibling_cpus else ROUNDS
    total = rounds * (len(kinds) + is_much)

    def stepped() -> None:
        progress("calibrate", next(steps), total)

    progress("calibrate", 0, total)
    try:
        if is_much:
            sweep = SweepJob(
                "sweep of the free list",
                context.backing,
                session.cpu,
                freed_pages,
                session.sibling_cpus,
                session.resting_cpu,
            )
            free_list = measure_free_list(sweep, rounds, stepped)
        conditions = Conditions(
            context.backing,
            session.thp,
            session.cpu,
            session.sibling_cpus,
            _states(wanted, is_much=is_much),
            longest,
            _filler_pages(freed_pages, free_list),
            session.resting_cpu,
        )
        samples = calibrate(kinds, conditions, rounds, session.seed, stepped)
    except AerostatError as error:
        return Foretold(
            tuple(None for _ in plans),
            (),
            notes=tuple(f"{error.what}: {error.reason}" for _ in plans),
        )
    table = Table(samples, free_list)
    times_ns = [None if each is None else predict_ns(each, table) for each in foreseen]
    return Foretold(
        tuple(None if time is None else round(time) for time in times_ns),
        tuple(_point(cell, values) for cell, values in samples.items()),
        free_list,
        tuple(_why_not(plan) for plan in plans),
    )


def _why_not(plan: Plan) -> str:
    if plan.threads == 1:
        return ""
    return f"what calls of {plan.threads} threads cost each other is not calibrated"


def _filler_pages(freed_pages: int, free_list: FreeList | None) -> int:
    """Pages that fill the list of free pages; where it was not seen to fill, many of them."""
    if free_list is None:
        return 0
    return free_list.pages * 5 // 4 or min(freed_pages, MOST_FILLER_PAGES)


FOUND: tuple[State, ...] = ("small", "lazy", "split", "huge", "emptied")


def _states(wanted: Sequence[Foreseen], *, is_much: bool) -> tuple[State, ...]:
    """States that some call will find; a call on nothing is the base of all others."""
    counted = {state: any(each.found[f"{state}_pages"].any() for each in wanted) for state in FOUND}
    counted["small"] |= is_much  # the base of `full`
    full: tuple[State, ...] = ("full",) if is_much else ()
    return ("untouched", *(state for state in FOUND if counted[state]), *full)


def _key(kind: Kind) -> tuple[int, int]:
    return kind.advice, kind.ranges


def _point(cell: Cell, samples: Sequence[float]) -> CalibrationPoint:
    kind = cell.kind
    return CalibrationPoint(
        kind.advice, kind.ranges, cell.state, cell.far, cell.pages, tuple(samples)
    )
