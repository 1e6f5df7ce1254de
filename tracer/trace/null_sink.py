"""Where rows go that are only counted: nowhere."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import pyarrow as pa

from tracer.trace.manifest import Manifest
from tracer.trace.schema import Mark


class NullSink:
    """Takes rows and keeps none. It is a `Sink`, for those who want a VM's figures and no trace."""

    stop_reason: str | None = None
    """Never: it needs no room."""
    written_bytes = 0

    def __init__(self) -> None:
        self.manifest = Manifest()

    def describe(self, manifest: Manifest) -> None:
        """Remember the manifest, which is small."""
        self.manifest = manifest

    def expect(self, tables: Iterable[str]) -> None:
        """Nothing is to be made ready."""

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Forget rows."""

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
        """Forget a mark."""

    def loss(
        self,
        stream: str,
        count: int,
        since_ns: int | None,
        until_ns: int,
        *,
        cause: str | None = None,
    ) -> None:
        """Forget a loss; the recorder counts them in its own figures."""

    def tick(self) -> None:
        """Nothing is asked for by time."""

    def close(self, manifest: Manifest) -> Manifest:
        """End; returns the manifest as it was given."""
        self.manifest = manifest
        return manifest

    def abort(self, reason: str) -> None:
        """End."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
