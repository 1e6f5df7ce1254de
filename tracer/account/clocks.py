"""The guest's clock in the host's time, from nothing but the order of cause and effect.

A request is sent before it is popped and pushed before the guest wakes. Each pair of rows therefore
bounds `host - guest` from both sides, and a straight line (offset and drift) has to fit between.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Points = list[tuple[int, int]]

MAX_DRIFT = 1e-3
"""Steepest drift taken for a clock's: 1000 ppm, twice what the kernel lets NTP slew (MAXFREQ in
include/linux/timex.h, 500 ppm, 6.1), since either clock may be slewed. It bounds a fit of few
pairs."""


@dataclass(frozen=True)
class ClockFit:
    """The guest's clock in the host's: host = guest + offset + drift * (guest - origin).

    Attributes:
        offset_ns: Host minus guest at `origin_ns`.
        drift: Growth of that difference per guest nanosecond.
        origin_ns: Guest time at which `offset_ns` holds.
        begin_ns: First guest time the fit covers.
        end_ns: Last guest time the fit covers.
        bound_ns: The truth is no further from the line than this, anywhere from begin to end if
            `consistent`; else at the pairs only.
        pairs: Pairs of rows that bound the line.
        violations: Pairs the line cannot satisfy.
        consistent: Whether one line satisfies every pair. Clock steps and wrong pairs make it
            False.
    """

    offset_ns: int
    drift: float
    origin_ns: int
    begin_ns: int
    end_ns: int
    bound_ns: int
    pairs: int
    violations: int
    consistent: bool

    def difference_ns(self, guest_ns: Int64s) -> Int64s:
        """Host minus guest at these guest times, in ns, to within `bound_ns`."""
        since = (guest_ns - np.int64(self.origin_ns)).astype(np.float64)
        return np.int64(self.offset_ns) + np.rint(self.drift * since).astype(np.int64)

    def to_host_ns(self, guest_ns: Int64s) -> Int64s:
        """Guest times in the host's clock, to within `bound_ns`."""
        return guest_ns + self.difference_ns(guest_ns)


def fit_clocks(
    send_ns: Int64s, pop_ns: Int64s, push_ns: Int64s, notice_ns: Int64s
) -> ClockFit | None:
    """Fit offset and drift so that send <= pop and push <= notice hold for every pair.

    The line is the one with the widest margin to every bound. If there is none, it is the one whose
    worst violation is least, and the bound grows to hold each pair's own interval.

    Args:
        send_ns: Guest clock, before the device could see the request.
        pop_ns: Host clock, when the device had taken it.
        push_ns: Host clock, before the guest could see the answer.
        notice_ns: Guest clock, when the guest had seen it.

    Returns:
        The fit, or None without a pair. Magnitudes must be below 2**61 ns.
    """
    if not len(send_ns):
        return None
    origin = int(send_ns[len(send_ns) // 2])
    base = int(pop_ns[len(send_ns) // 2]) - origin
    high = pop_ns - send_ns - np.int64(base)
    low = push_ns - notice_ns - np.int64(base)
    at_high, at_low = send_ns - np.int64(origin), notice_ns - np.int64(origin)
    begin = int(min(at_high.min(), at_low.min()))
    end = int(max(at_high.max(), at_low.max()))
    frame = _Frame(
        half_ns=max(1, -begin, end),
        unit_ns=max(1.0, float(np.median(np.maximum(high - low, 0)))),
        roof=_hull(at_high, high, -1),
        floor=_hull(at_low, low, 1),
    )
    offset, slope, margin = frame.widest()
    if margin * frame.unit_ns < -_GRAIN_NS:
        # Even the best line crosses a bound: no polygon of solutions, so no worst corner to look
        # for.
        deviation = None
    else:
        deviation = max(frame.deviation(offset, slope, begin), frame.deviation(offset, slope, end))
    fit = ClockFit(
        offset_ns=base + round(offset * frame.unit_ns),
        drift=slope * frame.unit_ns / frame.half_ns,
        origin_ns=origin,
        begin_ns=origin + begin,
        end_ns=origin + end,
        bound_ns=0,
        pairs=len(send_ns),
        violations=0,
        consistent=deviation is not None,
    )
    return _judge(fit, (send_ns, pop_ns, push_ns, notice_ns), deviation)


def _judge(
    fit: ClockFit, times: tuple[Int64s, Int64s, Int64s, Int64s], deviation_ns: float | None
) -> ClockFit:
    """Hold the line against every pair, in integers, and set bound and violations."""
    send_ns, pop_ns, push_ns, notice_ns = times
    over = fit.difference_ns(send_ns) - (pop_ns - send_ns)
    under = (push_ns - notice_ns) - fit.difference_ns(notice_ns)
    # The line's own value is rounded as well.
    violations = int(np.count_nonzero(np.maximum(over, under) > _GRAIN_NS + 1))
    if deviation_ns is None or violations:
        bound = int(max(np.abs(over).max(), np.abs(under).max()))
    else:
        bound = math.ceil(deviation_ns) + 2
    return ClockFit(
        **{
            **fit.__dict__,
            "bound_ns": bound,
            "violations": violations,
            "consistent": fit.consistent and violations == 0,
        }
    )


def _hull(at: Int64s, value: Int64s, turn: int) -> Points:
    """Keep the points that can bound a line: the lower hull (turn -1) or the upper hull (turn 1).

    In Python integers, because the cross products of nanoseconds leave 64 bits.
    """
    hull: Points = []
    order = np.lexsort((value, at))
    for point in zip(at[order].tolist(), value[order].tolist(), strict=True):
        while len(hull) > 1 and _cross(hull[-2], hull[-1], point) * turn >= 0:
            hull.pop()
        hull.append(point)
    return hull


def _cross(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


_GRAIN_NS = 2
"""Clock reads are whole nanoseconds, so a true line may miss a bound by this. Two close pairs lever
such an error far out at the other end of the span, so the band is widened by it before it is
measured."""


class _Frame:
    """The bounds in the solver's frame: time in half spans, values in typical round trips.

    Nanoseconds since boot would leave a double no digits for the drift; here all terms are near
    one.
    """

    def __init__(self, half_ns: int, unit_ns: float, roof: Points, floor: Points) -> None:
        self.half_ns = half_ns
        self.unit_ns = unit_ns
        # 1e-6: ten times the solver's own tolerance.
        self._grain = _GRAIN_NS / unit_ns + 1e-6
        x, y = (np.array(column, np.float64) for column in zip(*roof, strict=True))
        u, v = (np.array(column, np.float64) for column in zip(*floor, strict=True))
        x, y, u, v = x / half_ns, y / unit_ns, u / half_ns, v / unit_ns
        # offset + slope * x + margin <= y   and   offset + slope * u - margin >= v
        self._rows = np.vstack(
            [
                np.column_stack([np.ones_like(x), x, np.ones_like(x)]),
                np.column_stack([-np.ones_like(u), -u, np.ones_like(u)]),
            ]
        )
        self._limits = np.concatenate([y, -v])
        steepest = MAX_DRIFT * half_ns / unit_ns
        self._slopes = (-steepest, steepest)

    def widest(self) -> tuple[float, float, float]:
        """Offset, slope and margin of the line furthest from every bound, in the solver's units."""
        x = self._solve([0.0, 0.0, -1.0], (None, None))
        return float(x[0]), float(x[1]), float(x[2])

    def deviation(self, offset: float, slope: float, at_ns: int) -> float:
        """How far, in ns, another line that fits may be from this one at this time.

        The widest gap over a span is at one of its ends: the highest and the lowest fitting line
        are a convex and a concave function of time.
        """
        place = at_ns / self.half_ns
        here = offset + slope * place
        worst = 0.0
        for sign in (1.0, -1.0):
            x = self._solve([sign, sign * place, 0.0], (0.0, 0.0))
            worst = max(worst, abs(float(x[0]) + float(x[1]) * place - here))
        return worst * self.unit_ns

    def _solve(
        self, objective: list[float], margin: tuple[float | None, float | None]
    ) -> npt.NDArray[np.float64]:
        # Not for every recorder: 20 MiB, and seconds where the machine is emulated.
        from scipy.optimize import linprog

        result = linprog(
            objective,
            A_ub=self._rows,
            b_ub=self._limits + (0.0 if margin == (None, None) else self._grain),
            bounds=[(None, None), self._slopes, margin],
            method="highs",
        )
        return np.asarray(result.x, np.float64)
