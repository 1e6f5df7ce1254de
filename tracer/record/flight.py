"""A flight recorder: the last seconds of a VM in memory, written out when something happens."""

from __future__ import annotations

import mmap
import time
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from tracer.record.flight_dump import Dump, DumpWriter, Held
from tracer.record.live import UnderWay
from tracer.record.triggers import Balloon, Incident, TriggerRules, Triggers
from tracer.trace.manifest import Loss, Manifest, SideInfo
from tracer.trace.rows import checked, mark_row, span_of
from tracer.trace.schema import Mark, Side
from tracer.trace.storage import Storage

_ITEM_BYTES = 4096
"""What Python and Arrow need for a batch beside its buffers, rounded up."""
_DEFAULT = Storage()


@dataclass(frozen=True, slots=True)
class FlightOptions:
    """How much a flight recorder holds, and when it keeps it.

    Attributes:
        span_ns: How much time it holds.
        limit_bytes: How much memory it takes for that at most, and as much again while it dumps.
        rules: What makes `tick` dump by itself.
    """

    span_ns: int
    limit_bytes: int = 64 << 20
    rules: TriggerRules = field(default_factory=TriggerRules)


class FlightRecorder:
    """Holds the rows of the last seconds, and writes them to a bundle on demand. It is a `Sink`.

    What is too old, or too much, is forgotten. That is no loss: a dump's begin says
    from when on it has everything. Dumps are NAME-00001.balloon and so on, beside NAME.balloon,
    which itself is never made; each is a complete trace with a TRIGGER mark. They are written by a
    thread, so that the rings are drained meanwhile.

    Args:
        path: NAME.balloon.
        side: Whose events it takes.
        options: How much it holds, and when it dumps by itself.
        storage: Compression of the dumps.

    Raises:
        TraceError: There is no such directory.
    """

    stop_reason: str | None = None
    """Never: it needs no room until it dumps."""

    def __init__(
        self,
        path: Path | str,
        side: Side,
        *,
        options: FlightOptions,
        storage: Storage = _DEFAULT,
    ) -> None:
        self.path = Path(path)
        self._side, self._options = side, options
        self._triggers = Triggers(options.rules)
        self._dumps = DumpWriter(self.path, side, storage)
        self._manifest = Manifest()
        self._held: deque[Held] = deque()
        self._held_bytes = self._dumped_bytes = 0
        self._began_ns = time.monotonic_ns()
        self._forgotten_ns: int | None = None
        self._closed = False

    @property
    def manifest(self) -> Manifest:
        """The manifest as it was described last."""
        return self._manifest

    @property
    def written_bytes(self) -> int:
        """Bytes of the segments of all dumps so far."""
        return self._dumped_bytes

    @property
    def held_bytes(self) -> int:
        """Memory that is in use for rows."""
        return self._held_bytes

    def describe(self, manifest: Manifest) -> None:
        """Take note of what has become known, for the dumps."""
        self._manifest = manifest

    def expect(self, tables: Iterable[str]) -> None:
        """Nothing is to be made ready: a dump makes its segments when it is written."""

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Hold rows.

        Raises:
            ValueError: The batch is not of this table, or has nulls where none may be.
        """
        rows = checked(table, batch)
        if rows.num_rows:
            self._triggers.rows(table, rows)
            self._hold(table, rows.get_total_buffer_size(), rows)

    def mark(  # noqa: PLR0913  one argument per column of the row
        self,
        mark: Mark,
        ts_ns: int,
        *,
        value: int | None = None,
        text: str | None = None,
        since_ns: int | None = None,
        cause: str | None = None,
    ) -> None:
        """Hold one row of the marks; the arguments are its columns."""
        self._triggers.mark(mark, ts_ns, text)
        columns = {"value": value, "text": text, "since_ns": since_ns, "cause": cause}
        self.append("marks", mark_row(self._side, mark, ts_ns, **columns))

    def loss(
        self,
        stream: str,
        count: int,
        since_ns: int | None,
        until_ns: int,
        *,
        cause: str | None = None,
    ) -> None:
        """Say that `count` events of a stream are missing from a span of time."""
        if count:
            side = self._side.name.lower()
            self._hold("marks", 0, Loss(side, stream, count, since_ns, until_ns, cause))

    def watch(self, stats: Balloon) -> None:
        """Let the triggers see how the VM is doing; about once a second."""
        self._triggers.stats(stats)

    def under_way(self, requests: Iterable[UnderWay]) -> None:
        """Let the triggers see the requests that have not ended: one that never ends is a stall.

        Args:
            requests: All that are under way now.
        """
        self._triggers.under_way(requests, time.monotonic_ns())

    def request(self) -> None:
        """Dump at the next `tick`: somebody sent SIGUSR1."""
        self._triggers.signal(time.monotonic_ns())

    @property
    def is_due(self) -> bool:
        """Whether `tick` would begin a dump: what waits elsewhere has to be appended first."""
        return not self._dumps.is_busy and self._triggers.is_due(time.monotonic_ns())

    def tick(self) -> None:
        """Forget what is too old, and dump if something is due and no dump is under way."""
        self._forget()
        if not self._dumps.is_busy:
            incident = self._triggers.due(time.monotonic_ns())
            if incident is not None:
                self.dump(incident)

    def dump(self, incident: Incident) -> Path:
        """Begin to write what is held; `dumps` tells how it went.

        Args:
            incident: Why; its time and text become the TRIGGER mark.

        Returns:
            The bundle that is being made.
        """
        self._check_open()
        self._forget()
        return self._dumps.begin(incident, tuple(self._held), self._describe_dump(incident))

    def dumps(self) -> list[Dump]:
        """Take the dumps that are over and were not told of yet; after `close`, the last ones."""
        over = self._dumps.over()
        self._dumped_bytes += sum(dump.size_bytes for dump in over)
        return over

    def close(self, manifest: Manifest) -> Manifest:
        """End: keep what an incident asks for that was not kept yet, such as the VM's death.

        Waits for dumps under way, and forgets the rest.

        Returns:
            The manifest, as it was given.
        """
        self._manifest = manifest
        incident = self._triggers.at_end(time.monotonic_ns())
        if incident is not None:
            self.dump(incident)
        self._end()
        return manifest

    def abort(self, reason: str) -> None:
        """End as `close` does."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._dumps.close()
        self._held.clear()
        self._held_bytes = 0

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the flight recorder of {self.path} is closed")

    def _hold(self, table: str, buffers_bytes: int, content: pa.RecordBatch | Loss) -> None:
        self._check_open()
        size_bytes = buffers_bytes + _ITEM_BYTES
        self._held.append(Held(time.monotonic_ns(), size_bytes, table, content))
        self._held_bytes += size_bytes
        self._forget()

    def _forget(self) -> None:
        """Drop from the old end; remember until when something is missing there."""
        oldest_ns = time.monotonic_ns() - self._options.span_ns
        limit_bytes, held = self._options.limit_bytes, self._held
        while held and (self._held_bytes > limit_bytes or held[0].arrived_ns < oldest_ns):
            item = held.popleft()
            self._held_bytes -= item.size_bytes
            self._forgotten_ns = max(self._forgotten_ns or 0, _last_ns(item))

    def _describe_dump(self, incident: Incident) -> Manifest:
        """The manifest of a dump: what counted from the begin on does not hold for a part of it."""
        name, now_ns = self._side.name.lower(), time.monotonic_ns()
        info = self._manifest.sides.get(name) or SideInfo(mmap.PAGESIZE, self._began_ns)
        if self._forgotten_ns is not None:
            begin_ns = max(info.begin_ns, self._forgotten_ns)
            info = replace(info, begin_ns=begin_ns, counters={})
        probes = tuple(replace(probe, hits=None) for probe in info.probes)
        return replace(
            self._manifest,
            sides={name: replace(info, end_ns=now_ns, probes=probes)},
            session_id=str(uuid.uuid4()),
            created_realtime_ns=time.time_ns(),
            end_reason=f"trigger: {incident.kind}",
        )


def _last_ns(item: Held) -> int:
    """The last time that is named in what was held."""
    if isinstance(item.content, Loss):
        return item.content.until_ns
    span = span_of(item.table, item.content)
    return span[1] if span is not None else item.arrived_ns
