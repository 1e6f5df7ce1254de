"""What guest memory can be mapped from, and what each operation does to a page of it.

The table was run on Linux 6.18; the reasons name the kernel's own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from replay.native.types import Effect
from tracer.trace.schema import PAGE_BYTES


class Advice(IntEnum):
    """What an operation does: a madvise value of Linux, or from 128 on another system call."""

    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    POPULATE_WRITE = 23
    """Linux 5.14 and later."""
    PUNCH_HOLE = 128
    """fallocate, with the file's size kept."""
    REMAP = 129
    """mmap of fresh anonymous memory over the range (MAP_FIXED)."""


CALLS = (Advice.PUNCH_HOLE, Advice.REMAP)
"""Operations that are no madvise, and have no vector form."""


@dataclass(frozen=True)
class Backing:
    """One kind of memory.

    Args:
        discard: The one call that gives a page back.
        vector: The advice that does so through process_madvise.
        effects: What each possible operation does; the others fail.
        reasons: For each operation that gives no page back here, why; also for those that fail.
        host_page_bytes: The smallest unit that the host gives back.
        shared: Mapped MAP_SHARED.
        has_file: There is a file descriptor, so a hole can be punched.
    """

    discard: Advice
    vector: Advice
    effects: Mapping[Advice, Effect]
    reasons: Mapping[Advice, str]
    host_page_bytes: int = PAGE_BYTES
    shared: bool = False
    has_file: bool = False

    def why_not(self, advice: Advice) -> str | None:
        """Say why an operation gives no page back on this backing; None where it does."""
        if self.effects.get(advice) in (Effect.FREES, Effect.FREES_LATER):
            return None
        return self.reasons.get(advice, f"{advice.name} gives no memory back")

    def advice_with(self, *effects: Effect) -> list[Advice]:
        """Operations that have one of some effects."""
        return [advice for advice, effect in self.effects.items() if effect in effects]


_COMMON = {Advice.WILLNEED: Effect.KEEPS, Advice.POPULATE_WRITE: Effect.FILLS}
_NO_LAZY_FREE = (
    "MADV_FREE is for private anonymous memory alone"
    " (EINVAL elsewhere: mm/madvise.c, madvise_free_single_vma)"
)
_ONLY_UNMAPS = (
    "DONTNEED on a shared mapping only unmaps its pages; they stay in the file"
    " (mm/memory.c, zap_page_range_single)"
)
_LEAVES_FILE = (
    "a new mapping over shared memory leaves the pages in the file, and cuts the guest off from it"
)

_SHARED = {
    Advice.FREE: _NO_LAZY_FREE,
    Advice.DONTNEED: _ONLY_UNMAPS,
    Advice.REMAP: _LEAVES_FILE,
}

BACKINGS: Mapping[str, Backing] = {
    "anon": Backing(
        Advice.DONTNEED,
        Advice.DONTNEED,
        _COMMON
        | {
            Advice.DONTNEED: Effect.FREES,
            Advice.FREE: Effect.FREES_LATER,
            Advice.REMAP: Effect.FREES,
        },
        {
            Advice.REMOVE: "MADV_REMOVE needs a shared mapping (EINVAL: mm/madvise.c)",
            Advice.PUNCH_HOLE: "anonymous memory has no file to punch a hole into",
        },
    ),
    "memfd": Backing(
        Advice.PUNCH_HOLE,
        Advice.REMOVE,
        _COMMON
        | {
            Advice.DONTNEED: Effect.KEEPS,
            Advice.REMOVE: Effect.FREES,
            Advice.PUNCH_HOLE: Effect.FREES,
        },
        _SHARED,
        shared=True,
        has_file=True,
    ),
    "shmem": Backing(
        Advice.REMOVE,
        Advice.REMOVE,
        _COMMON | {Advice.DONTNEED: Effect.KEEPS, Advice.REMOVE: Effect.FREES},
        _SHARED
        | {Advice.PUNCH_HOLE: "shared anonymous memory has no descriptor of a file to punch"},
        shared=True,
    ),
    "hugetlb": Backing(
        Advice.PUNCH_HOLE,
        Advice.REMOVE,
        _COMMON | {Advice.REMOVE: Effect.FREES, Advice.PUNCH_HOLE: Effect.FREES},
        _SHARED,
        host_page_bytes=2 << 20,
        shared=True,
        has_file=True,
    ),
    "file-private": Backing(
        Advice.DONTNEED,
        Advice.DONTNEED,
        _COMMON
        | {
            Advice.DONTNEED: Effect.FREES,
            Advice.PUNCH_HOLE: Effect.KEEPS,
            Advice.REMAP: Effect.FREES,
        },
        {
            Advice.FREE: _NO_LAZY_FREE,
            Advice.REMOVE: "MADV_REMOVE needs a shared mapping (EACCES: mm/madvise.c)",
            Advice.PUNCH_HOLE: "a hole in the file leaves the guest's private copies of its pages"
            " (mm/truncate.c, truncate_pagecache_range unmaps no copies)",
        },
        has_file=True,
    ),
}
"""By name, as in a trace's memory map."""
