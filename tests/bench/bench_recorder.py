"""CPU that the recorder takes for a million pages, by detail, from ring to closed segment."""

from __future__ import annotations

from functools import partial

from tests.bench.flood import flooded
from tests.bench.measure import Report, Settings, interleaved, run

SECONDS = 2
PAGES_PER_S = 500_000
"""2 GB/s: as fast as a guest inflates without KVM; a steady rate makes rounds comparable."""
DETAILS = ("requests", "discards", "calls")


def measure(settings: Settings, report: Report) -> None:
    """Flood with a stand-in for QEMU, at a rate that any machine keeps up with."""
    found = interleaved({detail: partial(cpu_ms, detail) for detail in DETAILS}, settings)
    report.keep(found)
    for detail in DETAILS:
        report.figure(f"recorder CPU per million pages, {detail}", "ms", found[detail])
    report.notes.append("adjacent pages; compile and attach are not in it, closing the trace is")


def cpu_ms(detail: str) -> float:
    """Milliseconds of CPU for a million pages."""
    with flooded(SECONDS, PAGES_PER_S, detail=detail) as flood:
        assert not flood.lost("requests"), "lost requests: the figure would be too small"
        return flood.cpu_ns / flood.did.pages


if __name__ == "__main__":
    run("recorder", measure)
