"""The executor over a plain C loop; sorting and merging over the kernel's time for the pages."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from replay import native
from replay.backings import Advice
from replay.budget import available_bytes
from replay.memory import rules_for
from replay.native.types import Memory, Operations
from replay.ranges import Int64s, compact
from tests.bench.measure import Report, Settings, at_most, interleaved
from tracer.trace.schema import PAGE_BYTES, PFN_SHIFT

SOURCE = Path(__file__).with_name("plain_loop.c")
EXECUTOR_GOAL = 1.03
MERGE_GOAL = 0.5
"""Percent of the floor."""
ROUNDS_FOR_EACH = 5
"""Of the executor's pairs, which take a fifth of a second each and must tell 3 % apart."""
CHUNKS, CHUNK_PAGES = 64, 1024
FLOOR_PAGES = 7 << 18
"""7 GiB: the seed's inflate."""
SPARE_BYTES = 2 << 30
BLOCK, HUGE = 16, 512


@contextmanager
def mapped(pages: int) -> Iterator[Memory]:
    """Anonymous memory without huge pages."""
    memory = native.map_memory(pages << PFN_SHIFT, -1, False)
    try:
        native.advise_all(memory, mmap.MADV_NOHUGEPAGE)
        yield memory
    finally:
        native.unmap_memory(memory)


def populate(memory: Memory, pages: int) -> None:
    """Give every page memory of its own."""
    native.populate(memory, np.zeros(1, np.uint64), np.array([pages], np.uint64))


@contextmanager
def plain_loop() -> Iterator[Any]:
    """`discard_each` of plain_loop.c, built with the flags of the extension."""
    with tempfile.TemporaryDirectory() as work:
        library = Path(work) / "plain_loop.so"
        flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE)], check=True)
        function = ctypes.CDLL(str(library)).discard_each
        words = np.ctypeslib.ndpointer(np.uint64, flags="C_CONTIGUOUS")
        function.argtypes = (ctypes.c_void_p, words, words, ctypes.c_int64)
        function.restype = ctypes.c_int64
        yield function


def measure_executor(settings: Settings, report: Report) -> None:
    """Discard page by page, downwards: every second chunk by the executor, the others by the loop.

    Chunks of four megabytes take turns, so that both have the same minute of the same machine.
    """
    pages = CHUNKS * CHUNK_PAGES
    rules = {int(a): rule for a, rule in rules_for("anon").items()}
    offset = (np.arange(pages, dtype=np.uint64)[::-1] * np.uint64(PAGE_BYTES)).copy()
    length = np.full(CHUNK_PAGES, PAGE_BYTES, np.uint64)
    advice = np.full(CHUNK_PAGES, Advice.DONTNEED, np.uint8)
    with mapped(pages) as memory, plain_loop() as discard_each:

        def executor_ns(chunk: Int64s) -> int:
            request = np.zeros(len(chunk), np.int64)
            operations = Operations(advice, chunk, length, request)
            return native.execute(memory, operations, rules).cpu_ns

        def plain_ns(chunk: Int64s) -> int:
            took_ns = discard_each(memory.base, chunk, length, len(chunk))
            assert took_ns > 0, "a call of the plain loop failed"
            return took_ns

        for kind in ("touched", "untouched"):
            pairs: tuple[list[float], list[float]] = ([], [])
            for turn in range(ROUNDS_FOR_EACH * settings.pairs + 1):
                if kind == "touched":
                    populate(memory, pages)
                took = [0, 0]
                for number in range(CHUNKS):
                    chunk = offset[number * CHUNK_PAGES : (number + 1) * CHUNK_PAGES]
                    side = (number + turn) % 2
                    took[side] += (plain_ns, executor_ns)[side](chunk)
                if turn:
                    for samples, took_ns in zip(pairs, took, strict=True):
                        samples.append(took_ns / (pages / 2))
            report.keep({f"plain loop, {kind}": pairs[0], f"executor, {kind}": pairs[1]})
            report.figure(f"executor, a page a call, {kind}", "ns", pairs[1])
            what = f"executor over a plain C loop, {kind}"
            report.ratio(what, pairs, at_most(EXECUTOR_GOAL))


def orders(pages: int) -> dict[str, Int64s]:
    """PFNs in the orders in which they may come; a tenth is missing from the blocks."""
    random = np.random.default_rng(5)
    rising = np.arange(pages)
    blocks = rising[: pages // BLOCK * BLOCK].reshape(-1, BLOCK)[:, ::-1]
    blocks = random.permutation(blocks)[: len(blocks) * 9 // 10]
    huge = rising[: pages // HUGE * HUGE].reshape(-1, HUGE)
    return {
        "falling": rising[::-1].copy(),
        "blocks of 16": blocks.reshape(-1),
        "2 MiB shuffled": random.permutation(huge).reshape(-1),
        "shuffled": random.permutation(pages),
    }


def measure_merge(settings: Settings, report: Report) -> None:
    """CPU time of sorting and merging 7 GiB of PFNs over that of one discard of 7 GiB."""
    room = max(available_bytes() - SPARE_BYTES, PAGE_BYTES) >> PFN_SHIFT
    pages = min(FLOOR_PAGES, room)
    if pages < FLOOR_PAGES:
        text = f"floor: only {pages} pages fit; their time was scaled to {FLOOR_PAGES}"
        report.notes.append(text)

    def floor_ms() -> float:
        with mapped(pages) as memory:
            populate(memory, pages)
            begin_ns = time.thread_time_ns()
            native.advise_all(memory, mmap.MADV_DONTNEED)
            return (time.thread_time_ns() - begin_ns) / 1e6 * FLOOR_PAGES / pages

    def merge_ms(pfns: Int64s) -> float:
        # Once before the clock: a hypervisor that shadows page tables forgets ours over the floor,
        # and mapping the PFNs anew takes it seven times as long as they take.
        compact(pfns)
        begin_ns = time.thread_time_ns()
        compact(pfns)
        return (time.thread_time_ns() - begin_ns) / 1e6

    sides = {name: partial(merge_ms, pfns) for name, pfns in orders(FLOOR_PAGES).items()}
    found = interleaved({"floor": floor_ms, **sides}, settings)
    report.keep({f"sort and merge, {name}": samples for name, samples in found.items()})
    report.figure("floor: one discard of 7 GiB", "ms", found["floor"])
    for name in sides:
        percent = [100 * m / f for m, f in zip(found[name], found["floor"], strict=True)]
        what = f"sort and merge of {FLOOR_PAGES:,} PFNs, {name}, of the floor"
        report.figure(what, "%", percent, at_most(MERGE_GOAL))
