"""Opens a trace and gives its tables, checking every byte before anything is made of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tracer.trace.errors import TraceError
from tracer.trace.findings import Finding, error, warning
from tracer.trace.json_fields import MAX_TEXT
from tracer.trace.layout import files_on_disk, number_of, part_file, read_manifest, side_of
from tracer.trace.loss_book import united
from tracer.trace.manifest import Loss, Manifest
from tracer.trace.schema import DELTA_TABLES, TABLES, Mark, Side
from tracer.trace.segment_reader import Tail, closed_batches, stored_form, torn_batches


def open_trace(path: Path | str) -> "Trace":
    """Open a trace; tables are read when they are asked for.

    Args:
        path: A `NAME.balloon` directory, of whatever origin.

    Returns:
        The trace. One that was never closed opens too: see `is_complete` and `findings`.

    Raises:
        ForeignTraceError: The path is not a trace.
        NewerTraceError: Of a newer major format.
        OlderTraceError: Of an older major format that is no longer read.
        TornTraceError: The manifest is missing or damaged.
        TraceError: The manifest is not valid.
    """
    return Trace(Path(path))


class Trace:
    """One opened trace; nothing in the bundle is ever changed through it.

    Attributes:
        path: The bundle.
        manifest: As read.
        findings: What was noticed on the way so far; reading tables may add to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.findings: list[Finding] = []
        self._tables: dict[tuple[str, Side | None], pa.Table] = {}
        self._proven: set[str] = set()
        self._closed, self._parts = self._files()

    @property
    def sides(self) -> tuple[Side, ...]:
        """Sides with a SideInfo or with rows, host first."""
        named = {*self.manifest.sides, *map(side_of, self._closed), *map(side_of, self._parts)}
        return tuple(side for side in Side if side.name.lower() in named)

    @property
    def is_complete(self) -> bool:
        """Whether the manifest says that it was closed in order, and each side has its END."""
        return self.manifest.complete and not self.sides_without_end()

    def sides_without_end(self) -> list[Side]:
        """Sides that have no END mark."""
        ends = {row["side"] for row in self.marks(Mark.END)}
        return [side for side in self.sides if int(side) not in ends]

    def marks(self, mark: Mark) -> Iterator[dict[str, Any]]:
        """Give the marks of one kind, in the order of the table; a guest drives their number."""
        for batch in self.batches("marks"):
            yield from batch.filter(pc.equal(batch["mark"], int(mark))).to_pylist()

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Events known to be missing.

        Of an unclosed trace the manifest and the marks each may know what the other does not: the
        manifest is older than the last marks, and holds what waited to be written to them.
        """
        listed = self.manifest.losses
        return listed if self.manifest.complete else united(listed, self.marked_losses())

    def marked_losses(self) -> tuple[Loss, ...]:
        """Losses as the rows of the marks table tell them."""
        return tuple(
            Loss(
                side=Side(row["side"]).name.lower(),
                stream=(row["text"] or "")[:MAX_TEXT],
                count=row["value"],
                since_ns=row["since_ns"],
                until_ns=row["ts_ns"],
                cause=None if row["cause"] is None else row["cause"][:MAX_TEXT],
            )
            for row in self.marks(Mark.LOSS)
            if (row["value"] or 0) > 0 and min(row["ts_ns"], row["since_ns"] or 0) >= 0
        )

    def table(self, name: str, side: Side | None = None) -> pa.Table:
        """Read a table.

        Args:
            name: A name in schema.TABLES.
            side: Only this side's rows; without it the host's rows come first, then the guest's.

        Returns:
            The rows in the order in which they were recorded, kept until the trace is dropped.
            Empty, with the right columns, if nothing was recorded.

        Raises:
            TraceError: A segment is missing, damaged or of another table.
        """
        if (name, side) not in self._tables:
            rows = pa.Table.from_batches(self.batches(name, side), schema=TABLES[name])
            # One chunk a column: whoever wants flat arrays of it then needs no copy of their own.
            self._tables[name, side] = rows.combine_chunks()
        return self._tables[name, side]

    def batches(self, name: str, side: Side | None = None) -> Iterator[pa.RecordBatch]:
        """Read a table batch by batch, holding one of them in memory at a time.

        Args:
            name: A name in schema.TABLES.
            side: Only this side's rows.

        Yields:
            Checked batches, as they were appended.

        Raises:
            TraceError: A segment is missing, damaged or of another table.
        """
        for file in self.segment_files(name, side):
            yield from self.segment_batches(file)

    def segment_files(self, name: str, side: Side | None = None) -> list[str]:
        """List what a table is read from: closed segments, and parts by the name they would get."""
        wanted = [side.name.lower()] if side is not None else ["host", "guest"]
        files = {*self._closed, *self._parts}
        return [
            file
            for kind in wanted
            for file in sorted(files, key=number_of)
            if file.startswith(f"{name}/{kind}-")
        ]

    def segments_of_form(self, *, delta: bool) -> list[str]:
        """List the closed segments that store differences, or of the same tables all others.

        Raises:
            TraceError: A segment cannot be read.
        """
        return [
            file
            for table in DELTA_TABLES
            for file in self.segment_files(table)
            if file in self._closed and stored_form(self.path / file, table).delta is delta
        ]

    def segment_batches(self, file: str) -> Iterator[pa.RecordBatch]:
        """Read one of `segment_files`; what a part lost at its end goes to `findings`."""
        table, newer = PurePath(file).parts[0], self.manifest.is_newer_minor
        side = int(Side[side_of(file).upper()])
        tail = Tail()
        if file in self._closed:
            batches = closed_batches(self.path / file, table, newer_minor=newer)
        else:
            part = self.path / part_file(file)
            batches = torn_batches(part, table, tail, newer_minor=newer)
        for batch in batches:
            if "side" in batch.schema.names and not _all_equal(batch["side"], side):
                raise TraceError(
                    f"{self.path / file} has rows of another side",
                    reason="a segment holds one side's rows, and its name says which",
                    remedy="take the trace again",
                )
            yield batch
        if tail.dropped_bytes:
            text = f"{part_file(file)}: {tail.dropped_bytes} bytes behind the last whole batch"
            self._note(warning("part-torn", f"{text} are no batch ({tail.reason})"))

    def columns(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Read some columns of a table, and keep nothing of it here.

        Args:
            name: A name in schema.TABLES.
            columns: Names of its columns.

        Returns:
            As `table`: one chunk a column, the host's rows first.

        Raises:
            TraceError: A segment is missing, damaged or of another table.
        """
        parts = (batch.select(list(columns)) for batch in self.batches(name))
        schema = pa.schema([TABLES[name].field(column) for column in columns])
        return pa.Table.from_batches(parts, schema=schema).combine_chunks()

    def dataset(self, name: str) -> Any:
        """Give a table's closed segments as a `pyarrow.dataset.Dataset`, for filters or DuckDB.

        Every segment is read and checked once first. Parts of a torn trace are not in it. Segments
        that store differences are held in memory, all of the table, since only we restore them.

        Raises:
            TraceError: A segment is missing, damaged or of another table.
        """
        import pyarrow.dataset as ds

        files = [file for file in self.segment_files(name) if file in self._closed]
        for file in files:
            if file not in self._proven:
                for _ in self.segment_batches(file):
                    pass
                self._proven.add(file)
        if not files:
            return ds.dataset(TABLES[name].empty_table())
        paths = [str(self.path / file) for file in files]
        if any(stored_form(self.path / file, name).delta for file in files):
            rows = (batch for file in files for batch in self.segment_batches(file))
            return ds.dataset(pa.Table.from_batches(rows, schema=TABLES[name]))
        return ds.dataset(paths, schema=TABLES[name], format="ipc")

    def _files(self) -> tuple[list[str], list[str]]:
        """Choose what to read: what the manifest lists; of an unclosed trace, all that is there."""
        listed = [segment.file for segment in self.manifest.segments]
        closed = files_on_disk(self.path, parts=False)
        parts = [file for file in files_on_disk(self.path, parts=True) if file not in closed]
        if self.manifest.complete:
            for file in [*(f for f in closed if f not in listed), *map(part_file, parts)]:
                self._note(warning("segment-unlisted", f"{file} is not in the manifest; not read"))
            return listed, []
        for file in listed:
            if file not in closed:
                self._note(error("segment-missing", f"{file} is in the manifest, not on disk"))
        for file in parts:
            self._note(warning("part-open", f"{part_file(file)} was not closed; read as it is"))
        return closed, parts

    def _note(self, finding: Finding) -> None:
        if finding not in self.findings:
            self.findings.append(finding)


def _all_equal(column: pa.Array, value: int) -> bool:
    return bool(pc.all(pc.equal(column, value), min_count=0).as_py())
