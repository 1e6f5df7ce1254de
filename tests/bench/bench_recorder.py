"""CPU and page faults that the recorder takes by detail, from ring to closed segment."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

from tests.bench.flood import flooded
from tests.bench.measure import Report, Settings, interleaved, run

SECONDS = 2
PAGES_PER_S = 500_000
"""2 GB/s: as fast as a guest inflates without KVM; a steady rate makes rounds comparable."""
DETAILS = ("requests", "discards", "calls")


def measure(settings: Settings, report: Report) -> None:
    """Flood with a stand-in for QEMU, at a rate that any machine keeps up with."""
    faults: dict[str, list[float]] = defaultdict(list)
    sides = {detail: partial(cpu_ms, detail, faults[detail]) for detail in DETAILS}
    found = interleaved(sides, settings)
    report.keep(found)
    report.keep({f"{detail}, page faults": faults[detail] for detail in DETAILS})
    for detail in DETAILS:
        report.figure(f"recorder CPU per million pages, {detail}", "ms", found[detail])
    for detail in DETAILS:
        # Of the first round its memory grows to what it works in.
        report.figure(f"its page faults per 1,000 pages, {detail}", "", faults[detail][1:])
    report.notes.append("adjacent pages; compile and attach are not in it, closing the trace is")


def cpu_ms(detail: str, faults: list[float]) -> float:
    """Milliseconds of CPU for a million pages; adds page faults for a thousand."""
    with flooded(SECONDS, PAGES_PER_S, detail=detail) as flood:
        assert not flood.lost("requests"), "lost requests: the figure would be too small"
        faults.append(1000 * flood.faults / flood.did.pages)
        return flood.cpu_ns / flood.did.pages


if __name__ == "__main__":
    run("recorder", measure)
