"""How a trace lies on the disk: when segments close, how they are compressed, what is kept."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tracer.trace.layout import RESERVE
from tracer.trace.open_segment import Compression

BudgetPolicy = Literal["oldest", "stop"]
LEAST_BUDGET_BYTES = 4 << 20
BUDGET_SEGMENTS = 16
"""A segment closes at this part of the budget, so that the oldest one is never most of it."""
RESERVE_STEP_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Storage:
    """What the user may choose about a trace's files.

    Attributes:
        rotate_bytes: Close a segment that has grown to this size.
        rotate_ns: Bring a segment to the disk and close it after this long.
        compression: lz4, or zstd, which takes half the disk and twice the time.
        delta: Store addresses and times as differences (tracer/trace/delta.py).
        budget_bytes: What the bundle may take on the disk; None for no limit.
        budget_policy: At the limit, delete the `oldest` closed segments, never marks; or `stop`.

    Raises:
        ValueError: The budget is below LEAST_BUDGET_BYTES.
    """

    rotate_bytes: int = 64 << 20
    rotate_ns: int = 60 * 10**9
    compression: Compression = "lz4"
    delta: bool = False
    budget_bytes: int | None = None
    budget_policy: BudgetPolicy = "oldest"

    def __post_init__(self) -> None:
        if self.budget_bytes is not None and self.budget_bytes < LEAST_BUDGET_BYTES:
            raise ValueError(f"a budget is at least {LEAST_BUDGET_BYTES >> 20} MiB")

    @property
    def segment_bytes(self) -> int:
        """Size at which a segment closes."""
        if self.budget_bytes is None:
            return self.rotate_bytes
        return min(self.rotate_bytes, self.budget_bytes // BUDGET_SEGMENTS)

    def is_spent(self, used_bytes: int) -> bool:
        """Whether something must be deleted, or the recording end; what is under way still fits."""
        return self.budget_bytes is not None and used_bytes > self.budget_bytes * 7 // 8

    def is_over(self, used_bytes: int) -> bool:
        """Whether not even what is under way fits any more."""
        return self.budget_bytes is not None and used_bytes > self.budget_bytes * 15 // 16


class Reserve:
    """Room on the disk that is kept back for footers, the last marks and the manifest.

    Args:
        bundle: The trace's directory.

    Attributes:
        size_bytes: How much is kept back.
    """

    def __init__(self, bundle: Path) -> None:
        self.size_bytes = 0
        self._path = bundle / RESERVE

    def hold(self, wanted_bytes: int) -> None:
        """Keep back at least this much, and some.

        Raises:
            OSError: There is not so much.
        """
        if wanted_bytes <= self.size_bytes:
            return
        size_bytes = (wanted_bytes // RESERVE_STEP_BYTES + 1) * RESERVE_STEP_BYTES
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)
        self.size_bytes = size_bytes

    def release(self) -> None:
        """Give the room back, to be used now."""
        self._path.unlink(missing_ok=True)
        self.size_bytes = 0


def is_full(problem: OSError) -> bool:
    """Whether an error says that there is no room, on the disk or within the user's quota."""
    return problem.errno in {errno.ENOSPC, errno.EDQUOT}
