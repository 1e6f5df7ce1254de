"""What every bench shares: interleaved samples, intervals, goals, one document and one table."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from aerostat import render
from replay.environment import fingerprint
from replay.stats import median_interval, paired_ratio

OUTPUT = Path("out/bench")
DOCUMENT = 1
"""Version of a bench's document."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        pairs: Rounds that count, of each bench that measures in pairs; one more is thrown away.
        seed: Of the order within a round.
        seconds: Length of each flood that memory is watched over.
        events: Events of the sustained run.
        pages: Pages of 4 KiB that the goals discard: the seed's 7 GiB.
    """

    pairs: int = 7
    seed: int = 1
    seconds: float = 360.0
    events: int = 10_000_000
    pages: int = 7 << 18


@dataclass(frozen=True)
class Goal:
    """A bound on a figure; met when the worse end of its interval meets it."""

    bound: float
    at_least: bool = False

    def judge(self, low: float, high: float) -> str:
        """Say whether an interval meets the bound."""
        if self.at_least:
            low, high, bound = -high, -low, -self.bound
        else:
            bound = self.bound
        if high <= bound:
            return "met"
        return "not met" if low > bound else "not decidable"

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


def at_most(bound: float) -> Goal:
    """Smaller is better."""
    return Goal(bound)


def at_least(bound: float) -> Goal:
    """Larger is better."""
    return Goal(bound, at_least=True)


@dataclass(frozen=True)
class Row:
    """One figure: the median of its samples with an interval of 95 %."""

    what: str
    unit: str
    median: float
    low: float
    high: float
    goal: str = ""
    verdict: str = ""


@dataclass
class Report:
    """What one bench found.

    Attributes:
        name: The bench.
        rows: Its figures.
        samples: Raw samples by what they are of.
        notes: What a reader must know of this run.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keep(self, samples: Mapping[str, Sequence[float]]) -> None:
        """Keep raw samples."""
        self.samples.update({what: list(values) for what, values in samples.items()})

    def figure(self, what: str, unit: str, samples: Sequence[float], goal: Goal | None = None):
        """Add the median of samples."""
        low, high = median_interval(samples) if len(samples) > 1 else (samples[0], samples[0])
        self._add(what, unit, statistics.median(samples), (low, high), goal)

    def added(self, what: str, unit: str, pair: tuple[Sequence[float], Sequence[float]], goal=None):
        """Add what the second of a pair has over the first, pair by pair."""
        base, candidate = (np.asarray(side, np.float64) for side in pair)
        self.figure(what, unit, (candidate - base).tolist(), goal)

    def ratio(self, what: str, pair: tuple[Sequence[float], Sequence[float]], goal=None):
        """Add the second of a pair over the first, pair by pair."""
        found = paired_ratio(*pair)
        self._add(what, "x", found.ratio, (found.low, found.high), goal)

    def _add(
        self, what: str, unit: str, median: float, ends: tuple[float, float], goal: Goal | None
    ) -> None:
        verdict = goal.judge(*ends) if goal else ""
        self.rows.append(Row(what, unit, median, *ends, str(goal or ""), verdict))


def interleaved(
    sides: Mapping[str, Callable[[], float]], settings: Settings
) -> dict[str, list[float]]:
    """Take one sample of every side per round, in an order that is drawn anew each time.

    What drifts over minutes falls on all sides of a round. One round more is run first and thrown
    away: it warms caches and touches memory for the others.
    """
    order = random.Random(settings.seed)
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(settings.pairs + 1):
        print(f"  round {count} of {settings.pairs}", end="\r", file=sys.stderr)
        for name in order.sample(list(sides), len(sides)):
            samples[name].append(sides[name]())
    return {name: values[1:] for name, values in samples.items()}


def draw(reports: Sequence[Mapping[str, Any]]) -> None:
    """Draw the figures of bench documents as one table."""
    rows = [
        (
            document["bench"],
            row["what"],
            row["unit"],
            number(row["median"]),
            f"{number(row['low'])} to {number(row['high'])}",
            row["goal"],
            row["verdict"],
        )
        for document in reports
        for row in document["rows"]
    ]
    columns = ("<bench", "<what", "<unit", "median", "95 % interval", "goal", "<verdict")
    render.draw("benches", columns, rows)
    for document in reports:
        for note in document["notes"]:
            render.say(f"{document['bench']}: {note}")


def number(value: float) -> str:
    """Format a figure with three or four significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 if abs(value) < 10 else 1}f}"


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every bench."""
    made = argparse.ArgumentParser(description=description)
    defaults = Settings()
    made.add_argument("--pairs", type=int, default=defaults.pairs, help="rounds that count, >= 2")
    made.add_argument("--seed", type=int, default=defaults.seed, help="of the order in a round")
    made.add_argument("--seconds", type=float, default=defaults.seconds, help="of memory's flood")
    made.add_argument("--events", type=int, default=defaults.events, help="of drain's long run")
    made.add_argument("--pages", type=int, default=defaults.pages, help="that goals discard")
    made.add_argument("--output", type=Path, default=OUTPUT, help="directory of the documents")
    return made


def run(name: str, measure: Callable[[Settings, Report], None]) -> None:
    """Measure, write OUTPUT/NAME.json and draw the table: the main of every bench."""
    given = parser(f"bench {name}").parse_args()
    settings = Settings(given.pairs, given.seed, given.seconds, given.events, given.pages)
    report, begin = Report(name), time.monotonic()
    document = {
        "bench": name,
        "version": DOCUMENT,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": asdict(fingerprint()),
        "settings": asdict(settings),
    }
    measure(settings, report)
    document |= {"took_s": round(time.monotonic() - begin, 1), **asdict(report)}
    del document["name"]
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw([document])
