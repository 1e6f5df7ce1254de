"""Where the time of an inflate went: the seed's stages a, b, c and d, and what it left out.

docs/measuring.md says which probe opens and closes each stage.
"""

from dataclasses import dataclass, replace

import numpy as np

from tracer.account.clocks import ClockFit
from tracer.account.join import Joined, join
from tracer.account.probe_cost import CALL_POINTS, charged_ns
from tracer.account.spans import Rows, Sample, samples_of, wall_and_other
from tracer.trace.manifest import Manifest
from tracer.trace.reader import Trace
from tracer.trace.schema import Queue, Side

SEED_PAGES = 7 << 18
"""4 KiB pages in 7 GiB: what the seed inflated of an idle 8 GiB guest."""
SEED_TOTAL_NS = 4_126_000_000
SEED_NS = {"a": 268_000_000, "b": 2_818_000_000, "c": 252_000_000, "d": 784_000_000}
SEED_PERCENT = {"a": 6.5, "b": 68.3, "c": 6.1, "d": 19.0}
"""[PATCH v4 qemu 2/6] virtio-balloon: speed up inflating & deflating process (Liang Li, 2016)."""

_LETTERS = {Queue.INFLATE: "abcd", Queue.DEFLATE: "abcd", Queue.REPORTING: "bcd"}
"""The stages that a direction has. A report sends blocks that are free already: there is no a."""


@dataclass(frozen=True)
class Stage:
    """One stage of one direction. None means not observed, never zero.

    Attributes:
        name: The stage's word: allocate, send, translate, discard, and those without a letter.
        letter: The seed's letter, or empty.
        requests: Requests in which the stage was observed.
        pages: 4 KiB pages of those requests.
        rejected: Requests whose times contradict each other; they count as not observed.
        total_ns: Sum over `requests`.
        corrected_ns: `total_ns` less what the probes themselves cost in it; None if a cost is not
            known.
        median_ns: Of one request.
        p99_ns: 99th percentile of one request.
        worst_ns: Of one request.
        percent: Share of a+b+c+d per page; None if one of them is missing, or for a stage without a
            letter.
        corrected_percent: The same of the corrected times.
        seed_percent: The seed's share, inflate only.
        seed_ns: The seed's time for 7 GiB, inflate only.
    """

    name: str
    letter: str
    requests: int
    pages: int
    rejected: int
    total_ns: int | None
    corrected_ns: int | None
    median_ns: int | None
    p99_ns: int | None
    worst_ns: int | None
    percent: float | None = None
    corrected_percent: float | None = None
    seed_percent: float | None = None
    seed_ns: int | None = None

    @property
    def ns_per_page(self) -> float | None:
        """Measured time of one 4 KiB page."""
        return self.total_ns / self.pages if self.total_ns is not None and self.pages else None

    @property
    def corrected_ns_per_page(self) -> float | None:
        """Time of one 4 KiB page without the probes' own cost."""
        if self.corrected_ns is None or not self.pages:
            return None
        return self.corrected_ns / self.pages


@dataclass(frozen=True)
class Direction:
    """The stages of one queue.

    Attributes:
        queue: inflate, deflate or reporting.
        requests: Requests seen by the guest, or by the host where the guest was not traced.
        pages: 4 KiB pages of those requests.
        stages: In the order of the path.
        wall_ns: From the first request's begin to the last one's end, on the side that counted
            `requests`.
        other_ns: Part of `wall_ns` outside every request: the work queue, the target's arrival,
            idleness.
        seven_gib_ns: What 7 of 8 GiB would take at this rate, stages with a letter; None if one is
            missing.
        corrected_seven_gib_ns: The same without the probes' own cost.
    """

    queue: Queue
    requests: int
    pages: int
    stages: tuple[Stage, ...]
    wall_ns: int | None
    other_ns: int | None
    seven_gib_ns: int | None
    corrected_seven_gib_ns: int | None

    def stage(self, name: str) -> Stage:
        """Return the stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)


@dataclass(frozen=True)
class StageTable:
    """Stages of every direction that has requests, and the clock fit under the transit times."""

    directions: tuple[Direction, ...]
    clock: ClockFit | None

    def direction(self, queue: Queue) -> Direction | None:
        """Return one queue's stages, or None if it had no requests."""
        return next((item for item in self.directions if item.queue == queue), None)


def stage_table(trace: Trace, joined: Joined | None = None) -> StageTable:
    """Split the time of every direction into stages.

    Args:
        trace: A trace of one side or both.
        joined: The pairing, if the caller has it already; else the trace is joined here.

    Returns:
        Measured and corrected times. A stage whose probes or side are missing is None.
    """
    joined = joined or join(trace)
    rows = Rows(trace, joined)
    found = (_direction(queue, rows, trace.manifest, joined.clock) for queue in _LETTERS)
    return StageTable(tuple(item for item in found if item.requests), joined.clock)


def _direction(queue: Queue, rows: Rows, manifest: Manifest, clock: ClockFit | None) -> Direction:
    guest, host = rows.of(queue, Side.GUEST), rows.of(queue, Side.HOST)
    counted = guest if len(guest) else host
    stages = [
        _summarise(queue, sample, rows, manifest)
        for sample in samples_of(queue, rows, guest, host, clock)
    ]
    wall, other = wall_and_other(rows, guest, host)
    rate = _sum_per_page(stages, _LETTERS[queue], corrected=False)
    corrected = _sum_per_page(stages, _LETTERS[queue], corrected=True)
    return Direction(
        queue=queue,
        requests=len(counted),
        pages=int(rows.pages[counted].sum()),
        stages=tuple(_with_shares(queue, stage, rate, corrected) for stage in stages),
        wall_ns=wall,
        other_ns=other,
        seven_gib_ns=None if rate is None else round(rate * SEED_PAGES),
        corrected_seven_gib_ns=None if corrected is None else round(corrected * SEED_PAGES),
    )


def _summarise(queue: Queue, sample: Sample, rows: Rows, manifest: Manifest) -> Stage:
    lengths = np.sort(sample.lengths_ns[sample.observed])
    count = len(lengths)
    seen = sample.rows[sample.observed]
    # Python integers: a sum of many hostile lengths would leave 64 bits.
    total = sum(lengths.tolist()) if count else None
    made = int(rows.calls[seen].sum())
    calls = {name: made * rows.call_shares[name] for name in CALL_POINTS}
    cost = charged_ns(manifest, queue, sample.name, count, calls)
    return Stage(
        name=sample.name,
        letter=sample.letter,
        requests=count,
        pages=int(rows.pages[seen].sum()),
        rejected=sample.rejected,
        total_ns=total,
        corrected_ns=None if total is None or cost is None else max(0, total - cost),
        median_ns=int(lengths[(count - 1) // 2]) if count else None,
        p99_ns=int(lengths[-(-count * 99 // 100) - 1]) if count else None,
        worst_ns=int(lengths[-1]) if count else None,
    )


def _sum_per_page(stages: list[Stage], letters: str, *, corrected: bool) -> float | None:
    """Add the stages' times per page, so that stages seen in different requests weigh alike."""
    rates = [
        _rate(stage, corrected=corrected) for stage in stages if stage.letter in tuple(letters)
    ]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if len(known) == len(letters) else None


def _rate(stage: Stage, *, corrected: bool) -> float | None:
    return stage.corrected_ns_per_page if corrected else stage.ns_per_page


def _with_shares(queue: Queue, stage: Stage, rate: float | None, corrected: float | None) -> Stage:
    """Add the shares of a+b+c+d, and the seed's beside them."""
    seeded = queue == Queue.INFLATE and stage.letter in SEED_NS
    own = stage.letter in tuple(_LETTERS[queue])
    return replace(
        stage,
        percent=_percent(stage.ns_per_page, rate) if own else None,
        corrected_percent=_percent(stage.corrected_ns_per_page, corrected) if own else None,
        seed_percent=SEED_PERCENT[stage.letter] if seeded else None,
        seed_ns=SEED_NS[stage.letter] if seeded else None,
    )


def _percent(part: float | None, whole: float | None) -> float | None:
    return 100.0 * part / whole if part is not None and whole else None
