"""Memory of the recorder over a flood and as it closes: its peaks, and whether it stays flat.

The command itself, `aerostat record`, in a process of its own, with everything it loads. RSS counts
a page once for each mapping of it, so pages of the rings count twice; PSS counts them once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from tests.bench.measure import Goal, Report, Row, Settings, at_most, run
from tests.bench.peak import FORGET_PEAK
from tests.standins.build import qemu_like
from tracer.host_side.host import DETAILS
from tracer.trace.missing import missing_events
from tracer.trace.reader import open_trace

PAGES_PER_S = 500_000
EVERY_S = 0.5
CLOSING_EVERY_S, CLOSING_LONGEST_S = 0.01, 60.0
BLOCK_S = 15.0
"""Neighbouring samples are alike: batches come and go in seconds. So the slope is one of medians of
blocks, and its interval is as wide as those scatter."""
SETTLED_SHARE = 1 / 6
"""Of the flood, left out of the slope: buffers grow to their working size."""
FLAT = at_most(0.1)
"""MiB a minute: 144 MiB a day, which no recorder that stays on may reach."""
BUDGET = "512M"
"""Of disk: the oldest segments go, as they do on a host that is recorded for days."""
MIB = 1 << 20


@dataclass
class Watched:
    """A recorder's memory, in MiB, at times since its probes were attached.

    Attributes:
        at_s: When it was looked at.
        rss: Resident, each mapping of a page counted.
        pss: Resident, each page counted once.
        anon: Anonymous pages alone.
        peak: Most that was ever resident until the flood's end, the start included.
        closing_peak: Most that was resident from then until the process ended.
        compiler_peak: Most of the compiler's process, which had ended by then.
        missing: What the trace lacks, by cause: a budget's segments are no ring's losses.
    """

    at_s: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    anon: list[float] = field(default_factory=list)
    peak: float = 0.0
    closing_peak: float = 0.0
    compiler_peak: float = 0.0
    missing: str = ""


def measure(settings: Settings, report: Report) -> None:
    """Record a flood with each detail, and look at the process while it lasts."""
    for detail in DETAILS:
        found = watched(detail, settings.seconds)
        report.keep(
            {
                f"{detail}, time s": found.at_s,
                f"{detail}, RSS MiB": found.rss,
                f"{detail}, PSS MiB": found.pss,
                f"{detail}, anonymous MiB": found.anon,
            }
        )
        report.figure(f"peak RSS, {detail}", "MiB", [found.peak], at_most(150))
        report.figure(
            f"peak RSS while closing, {detail}", "MiB", [found.closing_peak], at_most(150)
        )
        report.figure(f"RSS while recording, {detail}", "MiB", found.rss, at_most(150))
        report.figure(f"PSS while recording, {detail}", "MiB", found.pss)
        report.figure(f"anonymous of it, {detail}", "MiB", found.anon)
        report.rows.append(growth(f"growth of RSS, {detail}", found.at_s, found.rss, FLAT))
        report.notes.append(f"{detail}: the trace {found.missing}")
        report.rows.append(growth(f"growth of anonymous, {detail}", found.at_s, found.anon, FLAT))
    report.figure("peak RSS of the compiler, before", "MiB", [found.compiler_peak])
    report.notes.append(
        f"floods of {settings.seconds:g} s at {PAGES_PER_S:,} pages/s with a budget of {BUDGET}; "
        f"growth is that of medians of {BLOCK_S:g} s, the first sixth left out"
    )


def growth(what: str, at_s: Sequence[float], sizes: Sequence[float], goal: Goal) -> Row:
    """Fit a line to the settled part of a series, in MiB a minute (Theil and Sen)."""
    begin_s = at_s[-1] * SETTLED_SHARE
    settled = [(at, size) for at, size in zip(at_s, sizes, strict=True) if at >= begin_s]
    block = [int((at - begin_s) / BLOCK_S) for at, _ in settled]
    # The last one is torn off somewhere.
    whole = range(max(block)) if max(block) > 1 else sorted(set(block))
    members = [[pair for pair, of in zip(settled, block, strict=True) if of == at] for at in whole]
    middles = [np.median(np.array(pairs), axis=0) for pairs in members]
    times, medians = zip(*middles, strict=True)
    slope = stats.theilslopes(medians, times, alpha=0.95)
    low, middle, high = (60 * slope[key] for key in (2, 0, 3))
    return Row(what, "MiB/min", middle, low, high, str(goal), goal.judge(low, high))


def watched(detail: str, seconds: float) -> Watched:
    """Record a flood of a stand-in for QEMU with the command itself."""
    found = Watched()
    with (
        tempfile.TemporaryDirectory(prefix="aerostat-bench-", dir="out") as work,
        qemu_like("-m", "256M") as vm,
    ):
        ready = Path(work) / "ready"
        command = [sys.executable, "-m", "aerostat", "record", "--pid", str(vm.pid), "--quiet"]
        command += ["--detail", detail, "-o", f"{work}/flood.balloon", "--budget", BUDGET]
        command += ["--ready-file", str(ready)]
        with subprocess.Popen(command) as recorder:
            while not ready.exists():
                assert recorder.poll() is None, "the recorder ended"
                peaks = [status(pid)["VmHWM"] for pid in children(recorder.pid)]
                found.compiler_peak = max(found.compiler_peak, *peaks, 0.0)
                time.sleep(0.02)
            flood = threading.Thread(target=vm.send, args=("flood", int(seconds), PAGES_PER_S))
            flood.start()
            begin_s = time.monotonic()
            while flood.is_alive():
                look(found, recorder.pid, begin_s)
                flood.join(EVERY_S)
            found.peak = status(recorder.pid)["VmHWM"]
            found.closing_peak = closing_peak(recorder)
        found.missing = missing_events(open_trace(f"{work}/flood.balloon")) or "misses nothing"
    return found


def closing_peak(recorder: subprocess.Popen[bytes]) -> float:
    """End a recorder, and say what most of it was resident while it closed trace and ledger."""
    Path(f"/proc/{recorder.pid}/clear_refs").write_text(FORGET_PEAK)
    recorder.terminate()
    give_up_s, peak = time.monotonic() + CLOSING_LONGEST_S, 0.0
    while recorder.poll() is None:
        assert time.monotonic() < give_up_s, "the recorder does not end"
        # A peak that only grows: what the last look misses is that of the last moment.
        peak = max(peak, status(recorder.pid)["VmHWM"])
        time.sleep(CLOSING_EVERY_S)
    return peak


def look(found: Watched, pid: int, begin_s: float) -> None:
    """Add one look at a process."""
    now = status(pid)
    found.at_s.append(time.monotonic() - begin_s)
    found.rss.append(now["VmRSS"])
    found.anon.append(now["RssAnon"])
    found.pss.append(sizes_of(Path(f"/proc/{pid}/smaps_rollup"))["Pss"])


def status(pid: int) -> dict[str, float]:
    """Sizes of a process in MiB, by their names in /proc/PID/status; zero once it has ended."""
    names = ("VmHWM", "VmRSS", "RssAnon")
    return dict.fromkeys(names, 0.0) | sizes_of(Path(f"/proc/{pid}/status"))


def sizes_of(path: Path) -> dict[str, float]:
    """Sizes in MiB by name, of a file of lines `NAME: NUMBER kB`; empty where it has gone."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 / MIB for line in lines if line[-1:] == ["kB"]}


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        if stat and int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.name))
    return found


if __name__ == "__main__":
    run("memory", measure)
