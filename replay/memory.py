"""The guest memory of a replay: mapped, restored to what the trace saw, and checked afterwards."""

import mmap
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from types import TracebackType

import numpy as np

from replay import native
from replay.backings import BACKINGS, Advice
from replay.huge_pages import huge_bytes
from replay.native.types import (
    Bytes,
    CallKind,
    Effect,
    Findings,
    Operations,
    Outcome,
    Page,
    Rule,
    Touch,
    Watch,
    Words,
)
from replay.plan import Plan, covered_pages
from replay.ranges import Runs, align_out, expand
from replay.residency import Residency, Thp
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PFN_SHIFT

FALLOC_PUNCH = 0x03
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (include/uapi/linux/falloc.h)."""
MFD_HUGE_2MB = os.MFD_HUGETLB | 21 << 26
"""include/uapi/linux/memfd.h: the logarithm of the size stands in the upper bits."""


SIBLING_PAGES = 512
"""Pages that sibling threads read: 2 MiB, more than a first-level TLB holds."""


@dataclass(frozen=True)
class Account:
    """Which pages have memory behind them, beside which should.

    `still_resident_pages` were discarded but have memory behind them; `lost_pages` were not
    discarded and have none (reclaim may do that where there is swap); `appeared_pages` were never
    touched and have some.
    """

    resident_pages: int
    gone_pages: int
    still_resident_pages: int
    lost_pages: int
    appeared_pages: int


@dataclass(frozen=True)
class Check(Account):
    """An account, and what the memory was found to hold."""

    findings: Findings


def rules_for(backing: str) -> dict[int, Rule]:
    """How each operation is carried out on a backing and what it does to a page there.

    One that must fail there is carried out all the same, so that its errno can be seen; only a hole
    without a file cannot be tried.
    """
    kinds = {Advice.PUNCH_HOLE: CallKind.FALLOCATE, Advice.REMAP: CallKind.REMAP}
    effects = BACKINGS[backing].effects

    def rule(advice: Advice) -> Rule:
        value = FALLOC_PUNCH if advice == Advice.PUNCH_HOLE else int(advice)
        return Rule(kinds.get(advice, CallKind.MADVISE), value, effects.get(advice, Effect.KEEPS))

    refused = {Advice.REMAP} - set(effects)  # it would not fail: it would cut the guest off
    return {int(advice): rule(advice) for advice in Advice if advice not in refused}


def floor_rules() -> dict[int, Rule]:
    """The same loop without the system call: what the harness itself costs."""
    return {int(advice): Rule(CallKind.NOTHING, 0, Effect.KEEPS) for advice in Advice}


def operations_of(plan: Plan) -> Operations:
    """The part of a plan that is executed."""
    return Operations(
        np.ascontiguousarray(plan.advice, np.uint8),
        np.ascontiguousarray(plan.offset_bytes, np.uint64),
        np.ascontiguousarray(plan.length_bytes, np.uint64),
        np.ascontiguousarray(plan.request, np.int64),
        None if plan.joined is None else np.ascontiguousarray(plan.joined).view(np.uint8),
        None if plan.thread is None else np.ascontiguousarray(plan.thread, np.uint8),
    )


class GuestMemory(AbstractContextManager["GuestMemory"]):
    """Memory of the model's size; open it as a context.

    Args:
        size_bytes: Bytes of guest memory: whole pages, `Context.layout.memory_bytes` for a trace.
            The mapping is whole host pages.
        backing: A name in `BACKINGS`.
        seed: Makes the stamps of this run differ from those of another.
        thp: `always` lets huge pages form during the run.

    Raises:
        AerostatError: The memory cannot be had, when the context is entered.
    """

    def __init__(self, size_bytes: int, backing: str, seed: int, thp: Thp = "madvise") -> None:
        self.backing = backing
        self.thp = thp
        unit = BACKINGS[backing].host_page_bytes
        self.size_bytes = -(-size_bytes // unit) * unit
        self.state: Bytes = np.zeros(self.size_bytes >> PFN_SHIFT, np.uint8)
        """What each page is expected to hold (`replay.native.types.Page`)."""
        self.seed = seed & ((1 << 64) - 1)

    def __enter__(self) -> "GuestMemory":
        fd = self._open_file()
        try:
            shared = BACKINGS[self.backing].shared
            self.mapping = native.map_memory(self.size_bytes, fd, shared)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return self

    def _open_file(self) -> int:
        """The file behind the memory, of its size and without content; -1 where there is none."""
        if not BACKINGS[self.backing].has_file:
            return -1
        try:
            if self.backing == "file-private":
                with TemporaryFile(prefix="aerostat-") as file:
                    fd = os.dup(file.fileno())
            else:
                huge = MFD_HUGE_2MB if self.backing == "hugetlb" else 0
                fd = os.memfd_create("aerostat", os.MFD_CLOEXEC | huge)
            os.ftruncate(fd, self.size_bytes)
        except OSError as error:
            raise AerostatError(
                f"cannot make a file for {self.backing} memory",
                reason=str(error),
                remedy="choose another --backing, or for file-private another TMPDIR",
            ) from error
        return fd

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
        empty. Huge pages stay forbidden afterwards unless they may form, or khugepaged would put
        some under the run. A larger host page is resident where any of its pages is.

        Returns:
            4 KiB pages that really are in transparent huge pages now: fewer than asked where there
            were none.
        """
        unit = BACKINGS[self.backing].host_page_bytes >> PFN_SHIFT
        if self.backing != "anon":
            for runs in (residency.small, residency.huge):
                self._populate(align_out(runs, unit))
            native.stamp(self.mapping, self.state, self.seed)
            return 0
        native.advise_all(self.mapping, mmap.MADV_NOHUGEPAGE)
        self._populate(residency.small)
        native.advise_all(self.mapping, mmap.MADV_HUGEPAGE)
        self._populate(residency.huge)
        if self.thp != "always":
            native.advise_all(self.mapping, mmap.MADV_NOHUGEPAGE)
        native.stamp(self.mapping, self.state, self.seed)
        return huge_bytes(self.mapping.base, self.size_bytes) >> PFN_SHIFT

    def _populate(self, runs: Runs) -> None:
        first = np.ascontiguousarray(runs.start, np.uint64)
        pages = np.ascontiguousarray(runs.pages, np.uint64)
        native.populate(self.mapping, first, pages)
        for start, count in zip(runs.start.tolist(), runs.pages.tolist(), strict=True):
            self.state[start : start + count] = Page.STAMPED

    def execute(
        self,
        operations: Operations,
        watch: Watch | None = None,
        cpus: Sequence[int] = (),
    ) -> Outcome:
        """Carry out operations on this memory, and keep account of what pages must hold now.

        Args:
            operations: What to do.
            watch: As for `replay.native.execute`.
            cpus: The same.

        Raises:
            NativeError: An operation is outside the memory or impossible on this backing; then none
                was carried out.
        """
        rules = rules_for(self.backing)
        outcome = native.execute(self.mapping, operations, rules, watch, cpus)
        if self.thp != "always" and (operations.advice == Advice.REMAP).any():
            # A new mapping has not the advice of the old one: what is touched again may be huge.
            native.advise_all(self.mapping, mmap.MADV_NOHUGEPAGE)
        native.expect(self.mapping, operations, rules, outcome.failed, self.state)
        return outcome

    def kept_pages(self, operations: Operations, most: int) -> Words:
        """Resident pages that no operation touches, spread over memory: what siblings may read.

        A host page counts only as a whole, so a page beside a discarded one is not among them.

        Args:
            operations: What will be carried out.
            most: So many at most.

        Returns:
            uint64, pages of the mapping; none where operations touch all that is resident.
        """
        if most == 0:
            return np.zeros(0, np.uint64)
        touched = covered_pages(operations)
        edges = np.zeros(len(self.state) + 1, np.int8)
        edges[touched.start] = 1
        edges[touched.end] -= 1  # no run begins where another ends
        covered = np.cumsum(edges[:-1], dtype=np.int8)
        kept = np.flatnonzero((self.state == Page.STAMPED) & (covered == 0))
        spread = np.linspace(0, len(kept) - 1, min(most, len(kept))).astype(np.int64)
        return kept[spread].astype(np.uint64)

    def floor(self, operations: Operations, watch: Watch | None = None) -> Outcome:
        """Run the same loop over the same operations without carrying them out.

        One thread runs it: handing work to threads is what a strategy does, not the harness.
        """
        alone = replace(operations, thread=None)
        return native.execute(self.mapping, alone, floor_rules(), watch)

    def touch(self, runs: Runs) -> Touch:
        """Write to every page of some runs, as a guest does that uses memory again.

        Their content stays what it must be, so `verify` still sees a page that kept its data.
        """
        columns = (np.ascontiguousarray(column, np.uint64) for column in runs)
        found = native.touch(self.mapping, *columns)
        page = expand(runs)
        emptied = np.isin(self.state[page], (Page.NEVER, Page.GONE))
        self.state[page[emptied]] = Page.FILLED
        return found

    def account(self) -> Account:
        """Compare residency with what it must be; changes nothing."""
        return self._account(native.residency(self.mapping))

    def _account(self, found: Bytes) -> Account:
        resident = found.astype(bool)
        gone, never = self.state == Page.GONE, self.state == Page.NEVER
        return Account(
            resident_pages=int(resident.sum()),
            gone_pages=int(gone.sum()),
            still_resident_pages=int((gone & resident).sum()),
            lost_pages=int(((self.state == Page.STAMPED) & ~resident).sum()),
            appeared_pages=int((never & resident).sum()),
        )

    def verify(self) -> Check:
        """Compare residency and content of every page with what they must be.

        Once a run: reading a discarded page of anonymous memory maps the kernel's zero page, which
        a second look would take for a resident one.
        """
        found = native.residency(self.mapping)
        findings = native.verify(self.mapping, self.state, found, self.seed)
        return Check(**vars(self._account(found)), findings=findings)

    def resident_pages(self) -> int:
        """Pages with memory behind them now."""
        return int(native.residency(self.mapping).sum())
