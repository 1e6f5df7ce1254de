"""One look at the memory of this kernel, or of one VMM: the columns of a row of samples.

A look reads a few files of /proc and nothing else. What they do not say is left out, and becomes
null in the trace.
"""

from __future__ import annotations

import os
import time

from tracer.record.machine import read_text

_KIB = 1024
_GUEST_VMSTAT = {
    "balloon_inflate": "balloon_inflate_pages",
    "balloon_deflate": "balloon_deflate_pages",
    "balloon_migrate": "balloon_migrate_pages",
    "pgmajfault": "major_faults",
}
_ROLLUP = {"Pss:": "pss_bytes", "AnonHugePages:": "anon_huge_bytes"}
_ROLLUP_SHARE = 100
_MINOR_FAULTS, _MAJOR_FAULTS, _RESIDENT_PAGES = 7, 9, 21
"""Fields 10, 12 and 24 of /proc/PID/stat (proc(5)), counted after the name, which is field 2."""

Sample = dict[str, int]
"""Columns of the samples table but `side`; those that were not seen are missing."""


def guest_sample() -> Sample:
    """Look at the memory of the kernel that this runs on, a guest's."""
    now = {"ts_ns": time.monotonic_ns()}
    return now | _vmstat(_GUEST_VMSTAT) | _available() | _pressure()


class HostSampler:
    """Looks at one VMM's memory, and at the pressure on this host.

    /proc/PID/smaps_rollup is read for PSS and huge pages. That walks the VMM's page tables, which
    takes long for a large VM (docs/measuring.md). So it may take one part in a hundred of the time,
    and what is not read then is not observed.

    Args:
        pid: The VMM.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._next_rollup_ns = 0

    def sample(self) -> Sample | None:
        """Return the columns, or None where the process is gone."""
        stat = read_text(f"/proc/{self._pid}/stat")
        if not stat:
            return None
        fields = stat.rpartition(")")[2].split()
        process = {
            "ts_ns": time.monotonic_ns(),
            "rss_bytes": int(fields[_RESIDENT_PAGES]) * os.sysconf("SC_PAGE_SIZE"),
            "minor_faults": int(fields[_MINOR_FAULTS]),
            "major_faults": int(fields[_MAJOR_FAULTS]),
        }
        return process | self._rollup() | _vmstat({}) | _available() | _pressure()

    def _rollup(self) -> Sample:
        """Read what takes long (since 4.14), unless it was read too lately for what it takes."""
        begin_ns = time.monotonic_ns()
        if begin_ns < self._next_rollup_ns:
            return {}
        pairs = dict(_pairs(f"/proc/{self._pid}/smaps_rollup"))
        took_ns = time.monotonic_ns() - begin_ns
        self._next_rollup_ns = begin_ns + took_ns * _ROLLUP_SHARE
        return {column: pairs[name] * _KIB for name, column in _ROLLUP.items() if name in pairs}


def _vmstat(columns: dict[str, str]) -> Sample:
    """Read counters of /proc/vmstat, and the sum of direct reclaims over the zones (since 4.10)."""
    found: Sample = {}
    for name, value in _pairs("/proc/vmstat"):
        if name in columns:
            found[columns[name]] = value
        elif name.startswith("allocstall_"):
            found["alloc_stalls"] = found.get("alloc_stalls", 0) + value
    return found


def _available() -> Sample:
    available = dict(_pairs("/proc/meminfo")).get("MemAvailable:")
    return {} if available is None else {"mem_available_bytes": available * _KIB}


def _pressure() -> Sample:
    """Read how long tasks stalled for memory in all, some of them or all at once (since 4.20)."""
    found: Sample = {}
    for line in (read_text("/proc/pressure/memory") or "").splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if kind in ("some", "full") and total.isdecimal():
            found[f"psi_{kind}_us"] = int(total)
    return found


def _pairs(path: str) -> list[tuple[str, int]]:
    """Return the first two words of each line whose second is a whole number."""
    lines = (line.split() for line in (read_text(path) or "").splitlines())
    return [(words[0], int(words[1])) for words in lines if len(words) > 1 and words[1].isdecimal()]
