"""How well a calibration foretells each strategy's stage d, on traces that it never saw.

The table is measured at the begin of each replay, before its first run. A/A: the same strategy's
runs, every other one, beside those between. How far the calibration's own samples lie apart says
how steady the machine was: where that is more than a tenth, errors are the machine's.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from replay.budget import huge_pool_bytes
from replay.results import Results
from replay.schedule import ReplayOptions, replay_trace
from replay.stability import APART, samples_apart
from replay.stats import paired_ratio
from tests.bench.measure import Report, Settings, at_most, run
from tracer.trace.errors import AerostatError

TRACES = sorted(Path("traces").glob("*.balloon"))
STRATEGIES = ("qemu", "adjacent", "request", "batch", "range", "deferred", "huge", "vectored")
STRATEGIES += ("free", "bulk", "scatter", "remap", "populate", "oracle")
ON_HUGETLB = ("qemu", "punch", "request", "deferred", "bulk", "populate")
ON_FILES = ("qemu", "request", "punch", "punch:merge=true", "bulk")
WAYS: tuple[tuple[str, dict[str, object]], ...] = (
    ("as recorded", {}),
    ("all touched", {"residency": "touched"}),
    ("nothing touched", {"residency": "untouched"}),
    ("all touched, one sibling", {"residency": "touched", "siblings": 1}),
    ("memfd, all touched", {"residency": "touched", "backing": "memfd"}),
    ("hugetlb, all touched", {"residency": "touched", "backing": "hugetlb"}),
)
ON = {"memfd": ON_FILES, "hugetlb": ON_HUGETLB}
TOO_SHORT_NS = 1_000_000
"""Below it a few interrupts of the machine are the result: such strategies are kept, not judged."""


def measure(settings: Settings, report: Report) -> None:
    """Foretell and replay every trace in every way; error is |foretold / measured - 1|."""
    errors: list[float] = []
    for path in TRACES:
        for way, more in WAYS:
            if more.get("backing") == "hugetlb" and not _has_pool(report, f"{path.stem}, {way}"):
                continue
            options = ReplayOptions(
                path,
                ON.get(str(more.get("backing")), STRATEGIES),
                runs=2 * settings.pairs,
                seed=settings.seed,
                predict=True,
                **more,  # type: ignore[arg-type]
            )
            results = replay_trace(options)
            what = f"{path.stem}, {way}"
            apart = samples_apart(results.calibration)
            report.figure(f"{what}: calibration's samples apart", "x", [apart], at_most(APART))
            errors += _errors(what, results, report)
    report.figure("error, median over strategies and traces", "x", [median(errors)], at_most(0.05))
    report.figure("error, worst", "x", [max(errors)], at_most(0.10))
    report.keep({"errors": errors})


def _has_pool(report: Report, what: str) -> bool:
    """Whether huge pages are reserved; one of 2 GiB takes 1024, a trace is cut to fewer."""
    try:
        huge_pool_bytes()
    except AerostatError as error:
        report.notes.append(f"{what}: {error.what}; {error.remedy}")
        return False
    return True


def _errors(what: str, results: Results, report: Report) -> list[float]:
    found = []
    for strategy in results.strategies:
        measured_ns = [float(each.discard_ns) for each in strategy.runs]
        report.keep({f"{what}, {strategy.name}, ns": measured_ns})
        if strategy.predicted_discard_ns is None:
            report.notes.append(f"{what}: {strategy.name} is not foretold")
            continue
        if median(measured_ns) < TOO_SHORT_NS:
            continue
        report.keep({f"{what}, {strategy.name}, foretold, ns": [strategy.predicted_discard_ns]})
        error = abs(strategy.predicted_discard_ns / median(measured_ns) - 1)
        report.figure(f"{what}: {strategy.name}", "x", [error])
        found.append(error)
        if strategy.name == "qemu":
            _add_again(what, measured_ns, report)
    return found


def _add_again(what: str, measured_ns: list[float], report: Report) -> None:
    """The strategy beside itself, interleaved: how far its interval lies from 1."""
    ratio = paired_ratio(measured_ns[::2], measured_ns[1::2])
    report.figure(f"{what}: A/A ratio", "x", [ratio.ratio])
    drift = max(abs(ratio.low - 1), abs(ratio.high - 1))
    report.figure(f"{what}: A/A interval's far end from 1", "x", [drift], at_most(0.03))


if __name__ == "__main__":
    run("prediction", measure)
