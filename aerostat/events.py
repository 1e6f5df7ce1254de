"""What happened while it was recorded, from the marks: in time order, floods of one kind as one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aerostat.sizes import format_bytes, format_ns
from tracer.account.clocks import ClockFit
from tracer.trace.reader import Trace
from tracer.trace.schema import Mark, Side

Int64s = npt.NDArray[np.int64]

_RECORDERS_OWN = (Mark.ATTACH, Mark.DETACH, Mark.END, Mark.LOSS)
"""Told elsewhere: these are about the recording, not about the VM."""
_FLOODS = (Mark.ACTUAL, Mark.OUT_OF_PUFF, Mark.OOM_DEFLATE, Mark.MIGRATION, Mark.QUOTA)
"""A guest drives their rate: between two other events, all of one kind are one."""


@dataclass(frozen=True)
class Event:
    """One event, or a flood of one kind.

    Attributes:
        side: Who says so.
        mark: Its kind.
        count: How many marks it stands for.
        after_ns: Its begin, since the recording began: the host's, where the host was recorded.
        since_ns: Its begin, by its side's clock.
        ts_ns: When it was over, by its side's clock.
        first_value: The first mark's value; docs/trace-format.md has its meaning.
        last_value: The last mark's value.
        sum_value: Of all; None where none has a value.
        text: What the last mark says beside its value.
    """

    side: Side
    mark: Mark
    count: int
    after_ns: int
    since_ns: int
    ts_ns: int
    first_value: int | None
    last_value: int | None
    sum_value: int | None
    text: str | None


def events(trace: Trace, clock: ClockFit | None) -> tuple[Event, ...]:
    """Put the marks of both sides into one order.

    Args:
        trace: Any trace.
        clock: Puts the guest's times on the host's clock. Without it, and with both sides, each
            side's times count from its own begin.
    """
    marks = trace.table("marks")
    wanted = [int(mark) for mark in Mark if mark not in _RECORDERS_OWN]
    marks = marks.filter(pc.is_in(marks["mark"], value_set=pa.array(wanted, pa.uint8())))
    if not marks.num_rows:
        return ()
    begin = pc.coalesce(marks["since_ns"], marks["ts_ns"]).to_numpy()
    after = begin - _origins(trace, clock, marks, begin)
    order = np.argsort(after, kind="stable")
    return tuple(_grouped(marks.take(order), begin[order], after[order]))


def _origins(trace: Trace, clock: ClockFit | None, marks: pa.Table, begin: Int64s) -> Int64s:
    """For each mark, what to take from its begin to get the time since the recording began."""
    is_guest = marks["side"].to_numpy() == Side.GUEST
    sides = trace.manifest.sides
    own = {side: info.begin_ns for side, info in sides.items()}
    host_begin, guest_begin = own.get("host", 0), own.get("guest", 0)
    if clock is not None and "host" in sides:
        return np.where(is_guest, host_begin - clock.difference_ns(begin), host_begin)
    return np.where(is_guest, guest_begin, host_begin)


def _grouped(marks: pa.Table, begin: Int64s, after: Int64s) -> Iterator[Event]:
    """Make one event of each mark, or of each flood between two other events."""
    mark, side = (marks[name].to_numpy().astype(np.int64) for name in ("mark", "side"))
    is_flood = np.isin(mark, _FLOODS)
    # A flood belongs to the stretch after the last other event; that one has a stretch of its own.
    stretch = 2 * np.cumsum(~is_flood) + is_flood
    keys = np.stack((stretch, mark, side), axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    ts, value = marks["ts_ns"].to_numpy(), marks["value"]
    has_value, values = value.is_valid().to_numpy(), value.fill_null(0).to_numpy()
    for rows in sorted(rows_of, key=lambda rows: int(rows[0])):
        first, last = int(rows[0]), int(rows[-1])
        valued = rows[has_value[rows]]
        yield Event(
            side=Side(int(side[first])),
            mark=Mark(int(mark[first])),
            count=len(rows),
            after_ns=int(after[first]),
            since_ns=int(begin[first]),
            ts_ns=int(ts[rows].max()),
            first_value=int(values[valued[0]]) if len(valued) else None,
            last_value=int(values[valued[-1]]) if len(valued) else None,
            sum_value=int(values[valued].sum()) if len(valued) else None,
            text=marks["text"][last].as_py(),
        )


def describe(event: Event) -> str:
    """Say in a line what an event was."""
    said = _say(event)
    # The text of a flood says no more than its kind does.
    if not event.text or event.mark in (Mark.RUN_STATE, *_FLOODS):
        return said
    return f"{said}: {event.text}" if said else event.text


def _say(event: Event) -> str:  # noqa: PLR0911  one answer for each kind
    first, last, total = event.first_value, event.last_value, event.sum_value
    match event.mark:
        case Mark.TARGET if last is not None:
            # The host names what the guest is to keep; the driver knows the balloon's size alone.
            what = "the guest is to keep" if event.side is Side.HOST else "the balloon is to hold"
            return f"{what} {format_bytes(last)}"
        case Mark.ACTUAL if first is not None and last is not None and event.count > 1:
            return f"{_has(event)} {format_bytes(first)}, and at the end {format_bytes(last)}"
        case Mark.ACTUAL if last is not None:
            return f"{_has(event)} {format_bytes(last)}"
        case Mark.RUN_STATE:
            return event.text or ""
        case Mark.SUSPEND if last is not None:
            return f"this machine slept {format_ns(last)}"
        case Mark.CLOCK_STEP if last is not None:
            return f"wall clock set by {'+' if last >= 0 else '-'}{format_ns(abs(last))}"
        case Mark.QUOTA if total is not None:
            return (
                f"{total:,} records over the quota within {format_ns(event.ts_ns - event.since_ns)}"
            )
        case Mark.OUT_OF_PUFF if total is not None:
            return f"slept {total:,} times for want of a page"
        case Mark.OOM_DEFLATE if total is not None:
            return f"{total:,} pages taken back because memory was short"
        case Mark.MIGRATION if total is not None:
            return f"{total:,} ballooned pages moved"
        case _:
            return ""


def _has(event: Event) -> str:
    return "the guest has" if event.side is Side.HOST else "the balloon holds"
