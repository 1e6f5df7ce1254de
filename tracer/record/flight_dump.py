"""Writes what a flight recorder held into numbered bundles, beside the recording."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tracer.errors import foreseen
from tracer.record.dump_thread import DUMP_THREAD
from tracer.record.triggers import Incident
from tracer.trace.errors import AerostatError, TraceError
from tracer.trace.manifest import Loss, Manifest
from tracer.trace.replace_bundle import remove_bundle
from tracer.trace.schema import Mark, Side
from tracer.trace.storage import Storage
from tracer.trace.writer import TraceWriter

KEPT_DUMPS = 16
"""An incident a minute must not fill the disk: only so many dumps are kept, the newest."""


class Held(NamedTuple):
    """A batch of a table, or a loss, and when it came."""

    arrived_ns: int
    size_bytes: int
    table: str
    content: pa.RecordBatch | Loss


@dataclass(frozen=True, slots=True)
class Dump:
    """One dump that is over.

    Attributes:
        path: Its bundle.
        reason: What triggered it.
        size_bytes: Of its segments.
        problem: Why it could not be written; None if it is whole.
    """

    path: Path
    reason: str
    size_bytes: int
    problem: AerostatError | None


class DumpWriter:
    """Makes NAME-00001.balloon and so on beside NAME.balloon; never overwrites one.

    Args:
        path: NAME.balloon.
        side: Whose rows they hold.
        storage: Their compression.

    Raises:
        TraceError: There is no such directory.
    """

    def __init__(self, path: Path, side: Side, storage: Storage) -> None:
        self._path, self._side, self._storage = path, side, storage
        self._stem = path.name.removesuffix(".balloon")
        try:
            self._number = max(self._numbers(), default=0)
        except OSError as problem:
            raise TraceError(
                f"cannot write flight records to {path.parent}",
                reason=problem.strerror or str(problem),
                remedy="give a path in a directory that exists and can be written",
            ) from problem
        self._under_way: list[Future[Dump]] = []

    def begin(self, incident: Incident, items: tuple[Held, ...], manifest: Manifest) -> Path:
        """Begin to write a bundle.

        Args:
            incident: Its time, value and text become the TRIGGER mark.
            items: What it holds, oldest first.
            manifest: Which describes its side, from its begin to its end.

        Returns:
            The bundle that is being made.
        """
        self._number += 1
        path = self._path_of(self._number)
        write = partial(self._write, path, incident, items, manifest)
        try:
            dump = DUMP_THREAD.submit(write)
        except RuntimeError as problem:
            dump = Future()
            dump.set_result(Dump(path, _text_of(incident), 0, _no_thread(path, problem)))
        self._under_way.append(dump)
        return path

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return any(not future.done() for future in self._under_way)

    def over(self) -> list[Dump]:
        """Take the dumps that are over and were not told of yet."""
        over = [future.result() for future in self._under_way if future.done()]
        self._under_way = [future for future in self._under_way if not future.done()]
        return over

    def close(self) -> None:
        """Wait for those under way, and for no other VM's that wait before them."""
        for dump in self._under_way:
            DUMP_THREAD.finish(dump)

    def _path_of(self, number: int) -> Path:
        return self._path.with_name(f"{self._stem}-{number:05d}.balloon")

    def _numbers(self) -> list[int]:
        pattern = re.compile(re.escape(self._stem) + r"-(\d{5,9})\.balloon", re.ASCII)
        names = (entry.name for entry in self._path.parent.iterdir())
        return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)

    def _write(
        self, path: Path, incident: Incident, items: tuple[Held, ...], manifest: Manifest
    ) -> Dump:
        text = _text_of(incident)
        try:
            with TraceWriter(path, self._side, manifest=manifest, storage=self._storage) as writer:
                for item in _without_orphans(items):
                    _put(writer, item)
                writer.mark(Mark.TRIGGER, incident.ts_ns, value=incident.value, text=text)
                made = writer.close(manifest)
        except Exception as problem:
            # Whatever is wrong with one dump, its VM is recorded on.
            return Dump(path, text, 0, foreseen(problem))
        self._keep_the_newest()
        return Dump(path, text, sum(segment.bytes for segment in made.segments), None)

    def _keep_the_newest(self) -> None:
        """Remove what is too many; what is no bundle, or is being read elsewhere, stays."""
        with contextlib.suppress(OSError):
            for number in self._numbers()[:-KEPT_DUMPS]:
                with contextlib.suppress(TraceError):
                    remove_bundle(self._path_of(number))


def _text_of(incident: Incident) -> str:
    return f"{incident.kind}: {incident.text}"


def _no_thread(path: Path, problem: RuntimeError) -> TraceError:
    return TraceError(
        f"cannot write the trace {path}",
        reason=f"no thread to write it: {problem}",
        remedy="raise the limit of threads, TasksMax of a service",
    )


def _put(writer: TraceWriter, item: Held) -> None:
    content = item.content
    if isinstance(content, Loss):
        span = content.since_ns, content.until_ns
        writer.loss(content.stream, content.count, *span, cause=content.cause)
    else:
        writer.append(item.table, content)


def _without_orphans(items: Iterable[Held]) -> Iterator[Held]:
    """Leave out calls whose request came before them and is forgotten already."""
    first_seq: int | None = None
    for item in items:
        content = item.content
        if isinstance(content, pa.RecordBatch) and item.table == "requests" and first_seq is None:
            first_seq = pc.min(content["seq"]).as_py()
        if isinstance(content, pa.RecordBatch) and item.table == "calls":
            yield item._replace(content=_calls_since(content, first_seq))
        else:
            yield item


def _calls_since(calls: pa.RecordBatch, first_seq: int | None) -> pa.RecordBatch:
    """Keep the calls of no request, and those of requests from a number on."""
    kept = pc.is_null(calls["request_seq"])
    if first_seq is not None:
        kept = pc.or_kleene(kept, pc.greater_equal(calls["request_seq"], first_seq))
    return calls.filter(kept)
