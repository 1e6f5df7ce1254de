"""The guest memory of a replay: mapped, restored to what the trace saw, and checked afterwards."""

import mmap
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from replay import native
from replay.native.types import (
    Bytes,
    CallKind,
    Effect,
    Findings,
    Operations,
    Outcome,
    Page,
    Rule,
    Times,
)
from replay.plan import Advice, Plan, effective_advice
from replay.ranges import Runs
from replay.residency import Residency
from tracer.trace.errors import AerostatError

BACKINGS = ("anon", "memfd")
"""What a replay can map memory from."""
AREA = re.compile(r"([0-9a-f]+)-[0-9a-f]+ ")
"""First line of a mapping in /proc/self/smaps."""
FALLOC_PUNCH = 0x03
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (include/uapi/linux/falloc.h)."""


@dataclass(frozen=True)
class Check:
    """What the memory was found to hold after a run.

    `still_resident_pages` were discarded but have memory behind them; `lost_pages` were not
    discarded and have none (reclaim may do that where there is swap); `appeared_pages` were never
    touched and have some.
    """

    findings: Findings
    resident_pages: int
    gone_pages: int
    still_resident_pages: int
    lost_pages: int
    appeared_pages: int


def rules_for(backing: str) -> dict[int, Rule]:
    """How each advice is carried out on a backing and what it does to a page there.

    On a shared mapping DONTNEED only drops this process's page-table entries: the memory stays in
    the file (mm/memory.c, zap_page_range). A hole needs a file.
    """
    frees = effective_advice(backing)

    def rule(advice: Advice) -> Rule:
        effect = Effect.FREES if advice in frees else Effect.KEEPS
        if advice == Advice.FREE and backing == "anon":
            effect = Effect.FREES_LATER
        if advice == Advice.PUNCH_HOLE:
            return Rule(CallKind.FALLOCATE, FALLOC_PUNCH, effect)
        return Rule(CallKind.MADVISE, int(advice), effect)

    return {int(advice): rule(advice) for advice in Advice}


def floor_rules() -> dict[int, Rule]:
    """The same loop without the system call: what the harness itself costs."""
    return {int(advice): Rule(CallKind.NOTHING, 0, Effect.KEEPS) for advice in Advice}


def operations_of(plan: Plan) -> Operations:
    """The part of a plan that is executed."""
    return Operations(
        np.ascontiguousarray(plan.advice, np.uint8),
        np.ascontiguousarray(plan.offset_bytes, np.uint64),
        np.ascontiguousarray(plan.length_bytes, np.uint64),
    )


class GuestMemory(AbstractContextManager["GuestMemory"]):
    """Memory of the model's size; open it as a context.

    Args:
        size_bytes: Bytes to map: whole pages, `Context.layout.memory_bytes` for a trace.
        backing: `anon` or `memfd`.
        seed: Makes the stamps of this run differ from those of another.

    Raises:
        AerostatError: The backing cannot be replayed here.
    """

    def __init__(self, size_bytes: int, backing: str, seed: int) -> None:
        if backing not in BACKINGS:
            raise AerostatError(
                f"memory of backing {backing!r} cannot be replayed",
                reason=f"replay maps {' or '.join(BACKINGS)}",
                remedy=f"choose --backing {BACKINGS[0]}",
            )
        self.backing = backing
        self.size_bytes = size_bytes
        self.state: Bytes = np.zeros(size_bytes >> 12, np.uint8)
        """What each page is expected to hold (`replay.native.types.Page`)."""
        self.seed = seed & ((1 << 64) - 1)

    def __enter__(self) -> "GuestMemory":
        fd = -1
        if self.backing == "memfd":
            fd = os.memfd_create("aerostat", os.MFD_CLOEXEC)
            os.ftruncate(fd, self.size_bytes)
        try:
            self.mapping = native.map_memory(self.size_bytes, fd)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        native.unmap_memory(self.mapping)
        if self.mapping.fd >= 0:
            os.close(self.mapping.fd)

    def restore(self, residency: Residency) -> int:
        """Populate and stamp the resident pages; leave all others untouched.

        Small pages come first, with huge pages forbidden, then the huge ones in what is still
        empty. Huge pages stay forbidden afterwards, or khugepaged would put some under the run.

        Returns:
            4 KiB pages that really are in huge pages now: fewer than asked where there were none.
        """
        anonymous = self.backing == "anon"
        if anonymous:
            native.advise_all(self.mapping, mmap.MADV_NOHUGEPAGE)
        self._populate(residency.small)
        if anonymous and len(residency.huge.start):
            native.advise_all(self.mapping, mmap.MADV_HUGEPAGE)
            self._populate(residency.huge)
            native.advise_all(self.mapping, mmap.MADV_NOHUGEPAGE)
        else:
            self._populate(residency.huge)
        native.stamp(self.mapping, self.state, self.seed)
        return huge_bytes(self.mapping.base, self.size_bytes) >> 12 if anonymous else 0

    def _populate(self, runs: Runs) -> None:
        first = np.ascontiguousarray(runs.start, np.uint64)
        pages = np.ascontiguousarray(runs.pages, np.uint64)
        native.populate(self.mapping, first, pages)
        for start, count in zip(runs.start.tolist(), runs.pages.tolist(), strict=True):
            self.state[start : start + count] = Page.STAMPED

    def execute(self, operations: Operations, per_op_ns: Times | None = None) -> Outcome:
        """Carry out operations on this memory, and keep account of what pages must hold now.

        Raises:
            NativeError: An operation is outside the memory or impossible on this backing; then none
                was carried out.
        """
        rules = rules_for(self.backing)
        outcome = native.execute(self.mapping, operations, rules, per_op_ns)
        native.expect(self.mapping, operations, rules, self.state)
        return outcome

    def floor(self, operations: Operations) -> Outcome:
        """Run the same loop over the same operations without carrying them out."""
        return native.execute(self.mapping, operations, floor_rules())

    def verify(self) -> Check:
        """Compare residency and content of every page with what they must be.

        Once a run: reading a discarded page of anonymous memory maps the kernel's zero page, which
        a second look would take for a resident one.
        """
        resident = native.residency(self.mapping).astype(bool)
        findings = native.verify(self.mapping, self.state, self.seed)
        gone, never = self.state == Page.GONE, self.state == Page.NEVER
        return Check(
            findings=findings,
            resident_pages=int(resident.sum()),
            gone_pages=int(gone.sum()),
            still_resident_pages=int((gone & resident).sum()),
            lost_pages=int(((self.state == Page.STAMPED) & ~resident).sum()),
            appeared_pages=int((never & resident).sum()),
        )

    def resident_pages(self) -> int:
        """Pages with memory behind them now."""
        return int(native.residency(self.mapping).sum())


def huge_bytes(base: int, size_bytes: int) -> int:
    """Bytes of anonymous huge pages in a part of this process; 0 where the kernel does not say.

    The interpreter's own large arrays may lie in huge pages too, so the process's sum is no use.

    Args:
        base: Host virtual address of the part's first byte.
        size_bytes: Its length.
    """
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    inside, total_bytes = False, 0
    for line in lines:
        if (area := AREA.match(line)) is not None:
            inside = base <= int(area[1], 16) < base + size_bytes
        elif inside and line.startswith("AnonHugePages:"):
            total_bytes += int(line.split()[1]) << 10
    return total_bytes
