"""Before a replay runs: calibrate what its plans need, and foretell each plan's stage d."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.calibrate import Cell, Conditions, Kind, State, calibrate
from replay.predict import Foreseen, Table, foresee, predict_ns
from replay.results import CalibrationPoint
from tracer.trace.errors import AerostatError

if TYPE_CHECKING:
    from replay.plan import Context, Plan
    from replay.residency import Residency, Thp

ROUNDS = 3
"""Processes of each kind of call: the table takes their median."""


@dataclass(frozen=True)
class Session:
    """What the calibration shares with the runs; all as in a run's job. `seed` is of its order."""

    thp: Thp
    cpu: int | None
    sibling_cpus: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Foretold:
    """What was foretold.

    Args:
        discard_ns: Stage d of each plan, in their order; None where it cannot be foretold.
        calibration: The table.
        note: Why nothing was foretold; empty where something was.
    """

    discard_ns: tuple[int | None, ...]
    calibration: tuple[CalibrationPoint, ...]
    note: str = ""


def foretell(
    plans: Sequence[Plan],
    context: Context,
    residency: Residency,
    session: Session,
) -> Foretold:
    """Calibrate under the conditions of the runs, and foretell stage d of every plan.

    The table knows lengths, states and orders of calls; nothing of the trace is run for it.

    Args:
        plans: What will be run.
        context: The memory.
        residency: What will be resident.
        session: What the runs will be like.
    """
    if context.host_page_pages > 1:
        return _nothing(plans, "calls on larger host pages are not calibrated")
    foreseen = [foresee(plan, context, residency) if plan.threads == 1 else None for plan in plans]
    wanted = [each for each in foreseen if each is not None and len(each.pages)]
    kinds = sorted({kind for each in wanted for kind in each.kinds}, key=_key)
    longest = max((int(each.pages.max()) for each in wanted), default=0)
    conditions = Conditions(
        context.backing,
        session.thp,
        session.cpu,
        session.sibling_cpus,
        _states(wanted),
        longest,
    )
    try:
        samples = calibrate(kinds, conditions, ROUNDS, session.seed)
    except AerostatError as error:
        return _nothing(plans, f"{error.what}: {error.reason}")
    table = Table(samples)
    times_ns = [None if each is None else predict_ns(each, table) for each in foreseen]
    return Foretold(
        tuple(None if time is None else round(time) for time in times_ns),
        tuple(_point(cell, values) for cell, values in samples.items()),
    )


STATES: tuple[State, ...] = ("untouched", "small", "split", "huge")


def _states(wanted: Sequence[Foreseen]) -> tuple[State, ...]:
    """States that some call will find; a call on nothing is the base of all others."""
    return tuple(
        state
        for state in STATES
        if state == "untouched" or any(each.found[f"{state}_pages"].any() for each in wanted)
    )


def _key(kind: Kind) -> tuple[int, int]:
    return kind.advice, kind.ranges


def _point(cell: Cell, samples: Sequence[float]) -> CalibrationPoint:
    kind = cell.kind
    return CalibrationPoint(
        kind.advice, kind.ranges, cell.state, cell.far, cell.pages, tuple(samples)
    )


def _nothing(plans: Sequence[Plan], note: str) -> Foretold:
    return Foretold(tuple(None for _ in plans), (), note)
