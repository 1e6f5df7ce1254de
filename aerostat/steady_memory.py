"""Keeps a process that stays on small: its memory as it was an hour ago, its threads few."""

import ctypes
import os
from contextlib import suppress

from aerostat.without_pandas import leave_pandas_out

_M_MMAP_THRESHOLD = -3
"""Of mallopt(3), malloc.h of glibc."""
_MAPPED_BYTES = 8 << 20


def stay_small() -> None:
    """Do all that is here, for the whole process; to be called before numpy is imported."""
    keep_memory_steady()
    keep_threads_few()
    leave_pandas_out()


def keep_threads_few() -> None:
    """Have the libraries start no thread for each CPU; for the whole process.

    numpy's OpenBLAS does when it is imported, and has nothing to do for them here. Arrow's pool,
    which takes its size from OMP_NUM_THREADS, does when the first ledger is closed: 50 threads on
    64 CPUs, while the VMs want these, and a service may have only so many. To be called before
    either is imported; what the user has set stays.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def keep_memory_steady() -> None:
    """Have large arrays go back to the system when they are freed; for the whole process.

    glibc gives a large block a mapping of its own, but from a size on that rises to 32 MiB as such
    blocks are freed (mallopt(3)): then they lie in heaps, which keep what is below a block in use.
    A recorder's batches leave 7 to 10 MiB there, and take minutes to. With less than 8 MiB a flood
    of single calls would cost a sixth more, for pages that come and go. numpy asks for huge pages
    for 4 MiB and more, which come back in steps of 2 MiB. To be called before numpy is imported; a
    C library without mallopt stays as it is.
    """
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
