"""What watched runs add to the results: pauses, memory over time, huge pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pauses:
    """Times of single system calls of one watched run.

    Args:
        calls: How many were timed.
        worst_operation: Index of the operation (the first of its call) that took `max_ns`.
        worst_pages: Pages of that call.
        harness_ns: Median time of a call that is left out: what the two clock reads add to each.
        histogram: Of all of them in ns, in the base64 form of HdrHistogram V2, 3 digits;
            `replay.pauses.pauses` reads it.
    """

    calls: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    worst_operation: int
    worst_pages: int
    harness_ns: int
    histogram: str


@dataclass(frozen=True)
class MemorySamples:
    """Memory during stage d of a watched run: columns of equal length, first sample before it.

    Args:
        at_ns: Since the first sample.
        operations: Done by then.
        rss_bytes: Of the whole process, the interpreter's own included.
        file_bytes: Of the shared file behind guest memory; None where there is none.
    """

    at_ns: tuple[int, ...]
    operations: tuple[int, ...]
    rss_bytes: tuple[int, ...]
    file_bytes: tuple[int, ...] | None


@dataclass(frozen=True)
class HugePages:
    """What stage d of a watched run did to huge pages, in 4 KiB pages of guest memory.

    Args:
        before_pages: In huge pages before stage d.
        after_pages: In huge pages after it.
        freed_pages: Of those before, pages whose huge page went whole.
        split_pages: Of those before, pages whose huge page lost a part, so that what is left is
            mapped by small pages.
        machine_splits: thp_split_page of /proc/vmstat meanwhile; like the next two it counts the
            whole machine.
        machine_pmd_splits: thp_split_pmd.
        machine_deferred_splits: thp_deferred_split_page: huge pages that stay, partly unmapped,
            until the kernel needs memory.
    """

    before_pages: int
    after_pages: int
    freed_pages: int
    split_pages: int
    machine_splits: int | None
    machine_pmd_splits: int | None
    machine_deferred_splits: int | None


@dataclass(frozen=True)
class WatchedRun:
    """A run in which every call is timed and memory is sampled; it counts in no total.

    `discard_ns` therefore holds two clock reads a call and the samples, and compares with nothing.
    `pauses` is None where the plan makes no call, `huge` where the kernel does not say which pages
    are huge.
    """

    order: int
    discard_ns: int
    pauses: Pauses | None
    memory: MemorySamples
    huge: HugePages | None
