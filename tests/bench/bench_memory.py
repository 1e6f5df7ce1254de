"""Memory of the recorder over a flood: its peak, and whether it stays flat.

The command itself, `aerostat record`, in a process of its own, with everything it loads.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from scipy import stats

from tests.bench.measure import Report, Row, Settings, at_most, run
from tests.standins.build import qemu_like

PAGES_PER_S = 500_000
EVERY_S = 0.5
SETTLED_SHARE = 1 / 4
"""Of the flood, left out of the slope: buffers grow to their working size."""
MIB = 1 << 20


def measure(settings: Settings, report: Report) -> None:
    """Record a flood with each of two details, and look at the process while it lasts."""
    for detail in ("discards", "calls"):
        at_s, rss, anon, peak = watched(detail, settings.seconds)
        report.keep(
            {f"{detail}, time s": at_s, f"{detail}, RSS MiB": rss, f"{detail}, anonymous MiB": anon}
        )
        report.figure(f"peak RSS, {detail}", "MiB", [peak], at_most(150))
        report.figure(f"RSS while recording, {detail}", "MiB", rss, at_most(150))
        report.figure(f"anonymous of it, {detail}", "MiB", anon)
        begin = int(len(rss) * SETTLED_SHARE)
        slope = stats.theilslopes(rss[begin:], at_s[begin:], alpha=0.95)
        low, middle, high = (60 * slope[key] for key in (2, 0, 3))
        goal = at_most(1)
        verdict = goal.judge(low, high)
        report.rows.append(
            Row(f"growth, {detail}", "MiB/min", middle, low, high, str(goal), verdict)
        )


def watched(detail: str, seconds: float) -> tuple[list[float], list[float], list[float], float]:
    """Record a flood; times, RSS and its anonymous part since the probes attached, and the peak."""
    with (
        tempfile.TemporaryDirectory(prefix="aerostat-bench-", dir="out") as work,
        qemu_like("-m", "256M") as vm,
    ):
        ready = Path(work) / "ready"
        command = [
            sys.executable,
            "-m",
            "tests.bench.record",
            "record",
            "--pid",
            str(vm.pid),
            "--quiet",
        ]
        command += ["--detail", detail, "-o", f"{work}/flood.balloon", "--ready-file", str(ready)]
        with subprocess.Popen(command) as recorder:
            while not ready.exists():
                assert recorder.poll() is None, "the recorder ended"
                time.sleep(0.1)
            flood = threading.Thread(target=vm.send, args=("flood", int(seconds), PAGES_PER_S))
            flood.start()
            at_s, rss, anon = [], [], []
            begin_s = time.monotonic()
            while flood.is_alive():
                now = status(recorder.pid)
                at_s.append(time.monotonic() - begin_s)
                rss.append(now["VmRSS"])
                anon.append(now["RssAnon"])
                flood.join(EVERY_S)
            peak = status(recorder.pid)["VmHWM"]
            recorder.terminate()
            recorder.wait(60)
    return at_s, rss, anon, peak


def status(pid: int) -> dict[str, float]:
    """Sizes of a process in MiB, by their names in /proc/PID/status."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 / MIB for line in lines if line[-1:] == ["kB"]}


if __name__ == "__main__":
    run("memory", measure)
