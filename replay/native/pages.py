"""The memory of a replay, page by page: mapped, populated, stamped, touched, looked at."""

import numpy as np

from replay.native.binding import array, check, check_pages, load, memory_struct
from replay.native.types import Bytes, Findings, Memory, Touch, Words

HUGE_PAGE_SHIFT = 21
"""Huge pages of 2 MiB."""


def map_memory(size_bytes: int, fd: int, shared: bool) -> Memory:
    """Map memory at a 2 MiB boundary, without reserving any.

    Raises:
        NativeError: The kernel refused.
    """
    ffi, lib = load()
    error = ffi.new("int *")
    base = lib.aero_map_memory(size_bytes, fd, shared, error)
    check(error[0], f"cannot map {size_bytes} bytes of guest memory")
    return Memory(int(ffi.cast("uintptr_t", base)), size_bytes, fd, shared)


def unmap_memory(memory: Memory) -> None:
    """Give a mapping back."""
    ffi, lib = load()
    error = lib.aero_unmap_memory(ffi.cast("uint8_t *", memory.base), memory.size_bytes)
    check(error, "cannot unmap guest memory")


def advise_all(memory: Memory, advice: int) -> None:
    """Give the whole mapping one madvise value."""
    lib = load()[1]
    error = lib.aero_advise_all(memory_struct(memory), advice)
    check(error, f"madvise {advice} on guest memory failed")


def populate(memory: Memory, first_page: Words, pages: Words) -> None:
    """Give every page of the runs memory of its own; runs in pages from the mapping's start."""
    ffi, lib = load()
    error = lib.aero_populate(
        memory_struct(memory),
        array(ffi, first_page, np.uint64),
        array(ffi, pages, np.uint64),
        len(first_page),
    )
    check(error, "cannot populate guest memory", "choose a smaller memory limit or trace")


def stamp(memory: Memory, state: Bytes, seed: int) -> None:
    """Write a word made of page number and seed at both ends of each page `state` calls STAMPED."""
    ffi, lib = load()
    check_pages(memory, state)
    lib.aero_stamp(memory_struct(memory), array(ffi, state, np.uint8), seed)


def residency(memory: Memory) -> Bytes:
    """Read which pages have memory behind them (mincore): uint8[pages], 0 or 1."""
    ffi, lib = load()
    resident = np.zeros(memory.size_bytes >> 12, np.uint8)
    error = lib.aero_residency(memory_struct(memory), array(ffi, resident, np.uint8))
    check(error, "cannot read which pages are resident")
    return resident


def verify(memory: Memory, state: Bytes, resident: Bytes, seed: int) -> Findings:
    """Read every page that was ever populated and compare it with `state`.

    Args:
        memory: The mapping.
        state: What each page must hold (`Page`).
        resident: What `residency` says now.
        seed: Of the stamps.
    """
    ffi, lib = load()
    check_pages(memory, state)
    check_pages(memory, resident)
    found = ffi.new("struct aero_findings *")
    columns = (array(ffi, column, np.uint8) for column in (state, resident))
    lib.aero_verify(memory_struct(memory), *columns, seed, found)
    return Findings(
        found.stamped_checked,
        found.gone_checked,
        found.lazy_checked,
        found.lazy_freed,
        found.wrong,
        found.first_wrong_page if found.first_wrong_page >= 0 else None,
    )


def touch(memory: Memory, first_page: Words, pages: Words) -> Touch:
    """Write a zero into every page of the runs, in their order, as a guest does that uses them.

    What the pages must hold afterwards stays the same: a discarded page is zero, a stamped one
    keeps its stamps.
    """
    ffi, lib = load()
    out = ffi.new("struct aero_touch *")
    columns = (array(ffi, column, np.uint64) for column in (first_page, pages))
    error = lib.aero_touch(memory_struct(memory), *columns, len(first_page), out)
    check(error, "cannot touch guest memory again")
    return Touch(out.wall_ns, out.cpu_ns, out.minor_faults, out.pages)


def huge_units(memory: Memory) -> Bytes | None:
    """Say which 2 MiB of the mapping lie in a huge page: uint8[2 MiB units], 0 or 1.

    None where the kernel cannot say (PAGEMAP_SCAN: fs/proc/task_mmu.c, Linux 6.7 and later).
    """
    ffi, lib = load()
    huge = np.zeros(memory.size_bytes >> HUGE_PAGE_SHIFT, np.uint8)
    return None if lib.aero_huge(memory_struct(memory), array(ffi, huge, np.uint8)) else huge
