"""What older manifests tell of a probe's hits, where one counter stood for several probes."""

from collections.abc import Mapping
from dataclasses import replace

from tracer.trace.manifest_parts import ProbeRecord, SideInfo

COUNTED_APART = (1, 2)
"""First version in which every recorder counts each point apart. Some of 1.1 did, and nothing in
their manifests says which."""
_SHARED_ENDS = ("pop", "push", "enter", "exit")
"""Last words of the host's points: before, all handlers and all system calls had one counter for
each of these."""


def has_shared_hits(version: tuple[int, int], side: str) -> bool:
    """Whether probes of this side of a trace may have been counted together."""
    return side == "host" and version < COUNTED_APART


def without_shared_hits(
    version: tuple[int, int], sides: Mapping[str, SideInfo]
) -> dict[str, SideInfo]:
    """Take away the hits that are a sum over several probes: of one of them they are not known."""
    return {
        name: replace(side, probes=tuple(map(_unknown, side.probes)))
        if has_shared_hits(version, name)
        else side
        for name, side in sides.items()
    }


def _unknown(probe: ProbeRecord) -> ProbeRecord:
    is_shared = probe.point.rpartition("-")[2] in _SHARED_ENDS
    return replace(probe, hits=None) if is_shared else probe
