"""What a recorder writes to: a trace on disk, or a flight recorder's memory."""

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa

from tracer.trace.manifest import Manifest
from tracer.trace.schema import Mark


class Sink(Protocol):
    """Takes one side's rows; for one thread.

    Every method but `abort` raises TraceError if what is below it fails for good. Where there is
    merely no room left, nothing is raised: rows are counted as lost, and `stop_reason` says so.
    """

    @property
    def manifest(self) -> Manifest:
        """The manifest as it stands."""
        ...

    @property
    def stop_reason(self) -> str | None:
        """Why recording should end now, `disk-full` or `budget`; None while all is well.

        A recorder looks here in its loop, ends, and calls `close` as ever. Rows that it still
        appends may be counted as lost instead of written; marks and losses are kept.
        """
        ...

    @property
    def written_bytes(self) -> int:
        """Bytes written to segments since the begin, those removed since then included."""
        ...

    def describe(self, manifest: Manifest) -> None:
        """Take note of what has become known; `close` may still change it."""
        ...

    def expect(self, tables: Iterable[str]) -> None:
        """Make ready for rows of these tables, so that their first rows cost no more than later.

        Call it before probes attach. A table that stays empty leaves nothing behind.
        """
        ...

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Append rows in the schema of the table, in order."""
        ...

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
        """Append one row to the marks; the arguments are its columns."""
        ...

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
        ...

    def tick(self) -> None:
        """Do what time alone asks for; called a few times a second, whatever was appended."""
        ...

    def close(self, manifest: Manifest) -> Manifest:
        """End in order; returns the manifest as it stands then."""
        ...

    def abort(self, reason: str) -> None:
        """End and say why it is not in order; nothing after `close`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
