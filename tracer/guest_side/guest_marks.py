"""The guest's marks: single events as they come, and those that come in floods as spans of them."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.engine.ring import Records
from tracer.guest_side.guest_events import EventKind
from tracer.trace.schema import PAGE_BYTES, Caller, Mark
from tracer.trace.sink import Sink

_EVERY_NS = 10 * 10**9
"""At most one mark of a kind in so long: a guest under pressure may sleep five times a second, or
move thousands of pages, for days."""
_TEXTS = {
    Mark.OUT_OF_PUFF: "allocation failed; slept",
    Mark.OOM_DEFLATE: "memory was short",
    Mark.MIGRATION: "compaction moved pages of the balloon",
}
_SPANNED = {Caller.OOM: Mark.OOM_DEFLATE, Caller.MIGRATION: Mark.MIGRATION}


@dataclass(slots=True)
class _Span:
    """Events of one kind that are not written yet."""

    since_ns: int
    until_ns: int
    value: int


class GuestMarks:
    """Writes what happened in the guest that is not a request.

    Args:
        writer: Where to.
    """

    def __init__(self, writer: Sink) -> None:
        self._writer = writer
        self._open: dict[Mark, _Span] = {}
        self._written_ns: dict[Mark, int] = {}
        self._actual_pages: int | None = None

    def add_requests(self, records: Records) -> None:
        """Look through inflates and deflates for sleeps, OOM and migrations."""
        slept = records[records["puffs"] > 0]
        if len(slept):
            times = slept["send_ns"]
            self._add(Mark.OUT_OF_PUFF, times.min(), times.max(), slept["puffs"].sum())
        for caller, mark in _SPANNED.items():
            # Deflates for OOM; of a migration's two requests, the inflate of the new page.
            found = records[(records["caller"] == caller)]
            if caller is Caller.MIGRATION:
                found = found[found["queue"] == 0]
            if len(found):
                times = found["send_ns"]
                self._add(mark, times.min(), times.max(), found["total"].sum())

    def add_events(self, records: Records) -> None:
        """Take targets, and sleeps after which nothing was sent."""
        for record in records[records["kind"] == EventKind.TARGET]:
            pages = int(record["value"])
            self._writer.mark(Mark.TARGET, int(record["send_ns"]), value=pages * PAGE_BYTES)
        for record in records[records["kind"] == EventKind.ACTUAL]:
            self.actual(int(record["value"]), int(record["send_ns"]))
        slept = records[records["kind"] == EventKind.PUFF]
        if len(slept):
            times = slept["send_ns"]
            self._add(Mark.OUT_OF_PUFF, times.min(), times.max(), slept["value"].sum())

    def actual(self, pages: int, ts_ns: int) -> None:
        """Write the balloon's size, if the driver has written another since the last call."""
        if pages != self._actual_pages:
            self._actual_pages = pages
            self._writer.mark(Mark.ACTUAL, ts_ns, value=pages * PAGE_BYTES)

    def flush(self, now_ns: int, *, final: bool = False) -> None:
        """Write the spans that are due: the first at once, one that goes on every ten seconds.

        Args:
            now_ns: CLOCK_MONOTONIC.
            final: Write all, since nothing more comes.
        """
        for mark in list(self._open):
            last_ns = self._written_ns.get(mark)
            if final or last_ns is None or now_ns - last_ns >= _EVERY_NS:
                span = self._open.pop(mark)
                self._written_ns[mark] = now_ns
                self._writer.mark(
                    mark,
                    span.until_ns,
                    since_ns=span.since_ns,
                    value=span.value,
                    text=_TEXTS[mark],
                )

    def _add(self, mark: Mark, since_ns: int, until_ns: int, value: int) -> None:
        span = self._open.setdefault(mark, _Span(int(since_ns), int(until_ns), 0))
        span.since_ns = min(span.since_ns, int(since_ns))
        span.until_ns = max(span.until_ns, int(until_ns))
        span.value += int(value)
