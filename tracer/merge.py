"""Makes one trace of a session's two: the guest's segments go into the host's bundle."""

import hashlib
import os
from dataclasses import asdict, replace
from pathlib import Path

from tracer.clocks import ClockFit
from tracer.join import join
from tracer.ledger import ledger
from tracer.trace.errors import TornTraceError, TraceError
from tracer.trace.layout import (
    MAX_SEGMENT_BYTES,
    files_on_disk,
    lock,
    read_manifest,
    read_regular,
    sync,
    write_manifest,
)
from tracer.trace.manifest import Alignment, Manifest, Segment
from tracer.trace.reader import open_trace
from tracer.trace.schema import TABLES, Side

GUEST = "guest"


def merge_sides(host_bundle: Path | str, guest_bundle: Path | str) -> Manifest:
    """Copy the guest's side into the host's bundle, then fit the clocks and close the ledger.

    The two recorders know nothing of each other, so their session identities differ and are not
    compared; whether the sides belong together shows in the pairs and in the ledger. Until the
    manifest is replaced, in one step, the host's bundle reads as before.

    Args:
        host_bundle: A closed bundle with a host side and no guest side; it is changed.
        guest_bundle: A closed or salvaged bundle with a guest side; it is only read.

    Returns:
        The host bundle's manifest as it stands then, with alignment and ledger.

    Raises:
        TornTraceError: The guest's bundle has segments that were never closed.
        TraceError: The guest's side is there already, a side is missing, or a segment is damaged.
    """
    host, guest = Path(host_bundle), Path(guest_bundle)
    descriptor = lock_bundle(host)
    try:
        merged = _merged_manifest(host, guest)
        _check_guest_rows(guest)
        for segment in merged.segments:
            if segment.side == GUEST:
                _copy(segment, guest, host)
        write_manifest(host, merged)
        return _settle(host)
    finally:
        os.close(descriptor)


def settle(bundle: Path | str) -> Manifest:
    """Fit the clocks and close the ledger of a finished bundle, and keep both in its manifest.

    Args:
        bundle: A bundle of one side or both that nobody is writing.

    Returns:
        The manifest as written.

    Raises:
        TraceError: The bundle is not a readable trace, or is being written.
    """
    path = Path(bundle)
    descriptor = lock_bundle(path)
    try:
        return _settle(path)
    finally:
        os.close(descriptor)


def lock_bundle(path: Path) -> int:
    """Take a bundle for writing; refuses a path that is not one before locking it."""
    read_manifest(path)
    return lock(path)


def _settle(path: Path) -> Manifest:
    trace = open_trace(path)
    fit = join(trace).clock
    settled = replace(
        trace.manifest,
        alignment=None if fit is None else _alignment(fit),
        ledger=ledger(trace).lines,
    )
    write_manifest(path, settled)
    return settled


def _alignment(fit: ClockFit) -> Alignment:
    return Alignment(**asdict(fit))


def _merged_manifest(host_path: Path, guest_path: Path) -> Manifest:
    """Work out the manifest of both sides, refusing what cannot be merged."""
    host, guest = read_manifest(host_path), read_manifest(guest_path)
    if GUEST in host.sides:
        raise TraceError(
            f"{host_path} has a guest side already",
            reason="a trace holds each side once",
            remedy="merge into the host's bundle as it was recorded",
        )
    for path, manifest, side in ((host_path, host, "host"), (guest_path, guest, GUEST)):
        if side not in manifest.sides:
            raise TraceError(
                f"{path} has no {side} side",
                reason=f"it holds {', '.join(manifest.sides) or 'no side'}",
                remedy="give the host's bundle first and the guest's second",
            )
    whole = host.complete and guest.complete
    return replace(
        host,
        sides={**host.sides, GUEST: guest.sides[GUEST]},
        segments=host.segments + tuple(s for s in guest.segments if s.side == GUEST),
        losses=host.losses + tuple(loss for loss in guest.losses if loss.side == GUEST),
        complete=whole,
        end_reason=host.end_reason if whole or not host.complete else f"guest: {guest.end_reason}",
    )


def _check_guest_rows(guest: Path) -> None:
    """Read the guest's side once before anything is copied: it comes from the guest."""
    if files_on_disk(guest, parts=True):
        raise TornTraceError(
            f"{guest} was not closed",
            reason="it has segments that are still open",
            remedy="salvage it, then merge again",
        )
    trace = open_trace(guest)
    for table in TABLES:
        for _ in trace.batches(table, Side.GUEST):
            pass


def _copy(segment: Segment, source: Path, target: Path) -> None:
    """Copy one closed segment under a hidden name, sync it, and give it its own name."""
    content = read_regular(source / segment.file, MAX_SEGMENT_BYTES)
    if hashlib.sha256(content).hexdigest() != segment.sha256:
        raise TraceError(
            f"{source / segment.file} is not the file that was recorded",
            reason="its SHA-256 differs from the manifest's",
            remedy="copy the guest's bundle again",
        )
    final = target / segment.file
    fresh = final.with_name(f"_{final.name}.new")
    try:
        final.parent.mkdir(exist_ok=True)
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(final)
        sync(final.parent)
    except OSError as problem:
        raise TraceError(
            f"cannot write {final}",
            reason=problem.strerror or str(problem),
            remedy="make room or check the disk, then merge again",
        ) from problem
