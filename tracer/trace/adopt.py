"""Takes one side's closed segments from another bundle: how a session's two captures become one."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from tracer.trace.errors import TornTraceError, TraceError, salvage_remedy
from tracer.trace.layout import (
    MAX_SEGMENT_BYTES,
    files_on_disk,
    hidden_file,
    lock,
    read_manifest,
    read_regular,
    sync,
    write_manifest,
)
from tracer.trace.manifest import Manifest, Segment
from tracer.trace.replace_bundle import require_apart
from tracer.trace.schema import Side


def adopt_segments(bundle: Path | str, other_bundle: Path | str, side: Side) -> Manifest:
    """Copy one side of another trace into a trace, and say so in its manifest in one step.

    The bundle is locked meanwhile. Alignment and ledger are dropped: they were made without this
    side. If anything fails, the trace is as it was, and the call can be repeated.

    Args:
        bundle: The trace that has the other side.
        other_bundle: The trace to copy from; it is not changed.
        side: Which side to copy.

    Returns:
        The new manifest; complete only if both traces are.

    Raises:
        TornTraceError: The other trace has segments that are not closed or not listed.
        TraceError: The trace lies in the other, which lacks the side, the trace has it already, a
            segment is not what its manifest says, or the disk fails.
    """
    bundle, other_bundle, name = Path(bundle), Path(other_bundle), side.name.lower()
    descriptor = lock(bundle)
    try:
        mine, other = read_manifest(bundle), read_manifest(other_bundle)
        _check(bundle, mine, other_bundle, other, name)
        wanted = [segment for segment in other.segments if segment.side == name]
        for segment in wanted:
            _copy(segment, other_bundle, bundle)
        merged = _merge(mine, other, wanted, name)
        write_manifest(bundle, merged)
    except OSError as problem:
        raise TraceError(
            f"cannot add the {name}'s side to {bundle}",
            reason=problem.strerror or str(problem),
            remedy="free space there and try again; the trace is as it was",
        ) from problem
    finally:
        os.close(descriptor)
    return merged


def _check(bundle: Path, mine: Manifest, other_bundle: Path, other: Manifest, name: str) -> None:
    if name not in other.sides:
        raise TraceError(
            f"{other_bundle} has no {name} side",
            reason=f"it holds {', '.join(other.sides) or 'no side'}",
            remedy="give the other bundle",
        )
    if name in mine.sides:
        raise TraceError(
            f"{bundle} already has a {name} side",
            reason="a side is never replaced",
            remedy="merge into the trace as it was recorded",
        )
    require_apart(other_bundle, bundle)
    listed = {segment.file for segment in other.segments}
    if files_on_disk(other_bundle, parts=True) or listed != {
        *files_on_disk(other_bundle, parts=False)
    }:
        raise TornTraceError(
            f"{other_bundle} was not closed",
            reason="it has segments that its manifest does not list",
            remedy=salvage_remedy(other_bundle),
        )


def _copy(segment: Segment, source: Path, target: Path) -> None:
    """Copy one segment; it gets its name only when it is whole, checked and on the disk."""
    raw = read_regular(source / segment.file, MAX_SEGMENT_BYTES)
    if len(raw) != segment.bytes or hashlib.sha256(raw).hexdigest() != segment.sha256:
        raise TraceError(
            f"{source / segment.file} is damaged",
            reason="its size or SHA-256 is not what the manifest says",
            remedy="copy the trace again from where it was recorded",
        )
    path, fresh = target / segment.file, target / hidden_file(segment.file, ".new")
    if not path.parent.is_dir():
        path.parent.mkdir()
        sync(target)
    fresh.write_bytes(raw)
    sync(fresh)
    fresh.rename(path)
    sync(path.parent)


def _merge(mine: Manifest, other: Manifest, adopted: list[Segment], name: str) -> Manifest:
    reason = mine.end_reason
    if mine.complete and not other.complete:
        reason = f"the {name}'s trace is not complete: {other.end_reason}"
    elif mine.complete and other.is_cut_short:
        reason = other.end_reason
    return replace(
        mine,
        sides={**mine.sides, name: other.sides[name]},
        segments=(*mine.segments, *adopted),
        losses=(*mine.losses, *(loss for loss in other.losses if loss.side == name)),
        complete=mine.complete and other.complete,
        end_reason=reason,
        alignment=None,
        ledger=None,
        labels={**other.labels, **mine.labels},
        format_version=max(mine, other, key=lambda item: item.version).format_version,
    )
