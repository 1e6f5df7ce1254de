"""Makes one trace of a session's two: the guest's segments go into the host's bundle."""

import os
from dataclasses import asdict, replace
from pathlib import Path

from tracer.account.join import join
from tracer.account.ledger import ledger
from tracer.trace.adopt import adopt_segments
from tracer.trace.errors import TraceError
from tracer.trace.layout import lock, read_manifest, write_manifest
from tracer.trace.manifest import Alignment, Manifest, VmInfo
from tracer.trace.reader import open_trace
from tracer.trace.schema import TABLES, Side


def merge_sides(host_bundle: Path | str, guest_bundle: Path | str) -> Manifest:
    """Copy the guest's side into the host's bundle, then fit the clocks and close the ledger.

    The two recorders know nothing of each other, so their session identities differ and are not
    compared; whether the sides belong together shows in the pairs and in the ledger. Until the
    manifest is replaced, in one step, the host's bundle reads as before.

    Args:
        host_bundle: A bundle with a host side and no guest side; it is changed.
        guest_bundle: A closed or salvaged bundle with a guest side; it is only read.

    Returns:
        The host bundle's manifest as it stands then, with alignment and ledger.

    Raises:
        TornTraceError: The guest's bundle has segments that were never closed.
        TraceError: The guest's side is there already, a side is missing, or a segment is damaged.
    """
    host, guest = Path(host_bundle), Path(guest_bundle)
    sides = read_manifest(host).sides
    if "host" not in sides:
        raise TraceError(
            f"{host} has no host side",
            reason=f"it holds {', '.join(sides) or 'no side'}",
            remedy="give the host's bundle first and the guest's second",
        )
    # The guest's rows come from the guest: read them all before anything is copied.
    trace = open_trace(guest)
    for table in TABLES:
        for _ in trace.batches(table, Side.GUEST):
            pass
    adopt_segments(host, guest, Side.GUEST)
    features = None if trace.manifest.vm is None else trace.manifest.vm.features
    return settle(host, features)


def settle(bundle: Path | str, features: tuple[str, ...] | None = None) -> Manifest:
    """Fit the clocks and close the ledger of a finished bundle, and keep both in its manifest.

    Args:
        bundle: A bundle of one side or both that nobody is writing.
        features: Negotiated feature bits by name: the guest's driver knows them, the host does not.

    Returns:
        The manifest as written.

    Raises:
        TraceError: The bundle is not a readable trace, or is being written.
    """
    path = Path(bundle)
    read_manifest(path)  # refuses a path that is no bundle before it is locked
    descriptor = lock(path)
    try:
        trace = open_trace(path)
        joined = join(trace)
        fit = joined.clock
        vm = trace.manifest.vm
        if features is not None:
            vm = replace(vm or VmInfo(), features=features)
        settled = replace(
            trace.manifest,
            vm=vm,
            alignment=None if fit is None else Alignment(**asdict(fit)),
            ledger=ledger(trace, joined).lines,
        )
        write_manifest(path, settled)
        return settled
    finally:
        os.close(descriptor)
