"""What a trace can say at all: its detail, and what was not recorded, with what to do about it."""

from dataclasses import dataclass

from tracer.trace.manifest import Manifest
from tracer.trace.missing import unseen_requests
from tracer.trace.schema import Side

_HOLDS = {
    "requests": "every request with its pages and times",
    "discards": "every request, and its discard calls, neighbours merged in the kernel",
    "calls": "every request, and every single discard call",
}
_CALLS_ALONE = {
    "discards": "discard calls on guest memory, neighbours merged in the kernel",
    "calls": "every single discard call on guest memory",
}


@dataclass(frozen=True)
class Scope:
    """What one side's recording holds and lacks.

    Attributes:
        side: Which.
        detail: requests, discards or calls; None for a side that was not recorded, or not told.
        holds: What it holds, in words; empty if nothing.
        lacks: What it cannot hold, and why; empty if nothing.
        remedy: What would record that too; empty if nothing.
    """

    side: Side
    detail: str | None
    holds: str
    lacks: str
    remedy: str

    def sentences(self) -> list[str]:
        """Say it in lines for the head of a report."""
        name = self.side.name.capitalize()
        what = f"{name}, detail {self.detail}" if self.detail else name
        told = [f"{what}: {self.holds}."] if self.holds else []
        if self.lacks:
            told.append(f"{name}: {self.lacks}.")
        if self.remedy:
            told.append(f"  try: {self.remedy}")
        return told


def scopes(manifest: Manifest) -> tuple[Scope, ...]:
    """Say of each side what it recorded and what it could not.

    Args:
        manifest: Of any trace.
    """
    return _host(manifest), _guest(manifest)


def _host(manifest: Manifest) -> Scope:
    side = manifest.sides.get("host")
    if side is None:
        lacks = "not recorded, so translate and discard (c, d) are not observed"
        return Scope(Side.HOST, None, "", lacks, "aerostat record --pid PID on the host")
    unseen = unseen_requests(manifest)
    if unseen is not None:
        return Scope(
            Side.HOST,
            side.detail,
            _CALLS_ALONE.get(side.detail or "", _CALLS_ALONE["discards"]),
            "no requests, which stages and strategies need, because the balloon's handlers"
            f" could not be probed: {unseen}. Whether a call was the balloon's is not known",
            "record in the guest at the same time, and aerostat import that: it has the requests",
        )
    lacks = remedy = ""
    if side.detail == "requests":
        lacks = "no system calls, so translate and discard (c, d) are not observed"
        remedy = "aerostat record --detail discards"
    return Scope(Side.HOST, side.detail, _HOLDS.get(side.detail or "", ""), lacks, remedy)


def _guest(manifest: Manifest) -> Scope:
    if "guest" in manifest.sides:
        holds = "every request with its pages, times and cause"
        return Scope(Side.GUEST, None, holds, "", "")
    lacks = "not recorded, so allocate and send (a, b) are not observed"
    return Scope(Side.GUEST, None, "", lacks, "aerostat record --guest, in the guest")
