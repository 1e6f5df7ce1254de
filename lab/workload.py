"""Memory workloads that run inside the guest; only the standard library is used.

workload.py churn BYTES ROUNDS PAUSE_S      allocate, free, wait; ROUNDS times
workload.py fragment BYTES READY_FILE       leave every other page of BYTES free, until a signal
workload.py fill BYTES READY_FILE           take BYTES more, and again, until a signal
"""

import mmap
import signal
import sys
import time
from pathlib import Path

PAGE_BYTES = mmap.PAGESIZE
MADV_POPULATE_WRITE = 23
"""One call in place of a fault per page, which emulation makes slow (4ca9b3859dac, v5.14)."""


def touched(size_bytes: int, *, huge: bool) -> mmap.mmap:
    """Return private memory of which every page is there."""
    memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    memory.madvise(MADV_POPULATE_WRITE)
    return memory


def churn(size_bytes: int, rounds: int, pause_s: float) -> None:
    """Allocate and free, then leave time for free page reporting (one pass takes 2 s)."""
    for _ in range(rounds):
        touched(size_bytes, huge=True).close()
        time.sleep(pause_s)


def fragment(size_bytes: int, ready: Path) -> None:
    """Fill memory page by page, give every other page back, and hold the rest.

    Pages are handed out in nearly rising order, so what is free afterwards is mostly single pages.
    """
    memory = touched(size_bytes, huge=False)
    for offset in range(0, size_bytes, 2 * PAGE_BYTES):
        memory.madvise(mmap.MADV_DONTNEED, offset, PAGE_BYTES)
    ready.touch()
    signal.pause()


def fill(step_bytes: int, ready: Path) -> None:
    """Take memory step by step, and keep it, until there is none or somebody ends this."""
    kept = []
    ready.touch()
    while True:
        kept.append(touched(step_bytes, huge=False))
        time.sleep(0.02)


def main(arguments: list[str]) -> None:
    """Run the workload that the arguments name."""
    match arguments:
        case ["churn", size, rounds, pause_s]:
            churn(int(size) // PAGE_BYTES * PAGE_BYTES, int(rounds), float(pause_s))
        case ["fragment", size, ready]:
            fragment(int(size) // PAGE_BYTES * PAGE_BYTES, Path(ready))
        case ["fill", size, ready]:
            fill(int(size) // PAGE_BYTES * PAGE_BYTES, Path(ready))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
