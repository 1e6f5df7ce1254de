"""Losses: few rows and a short list, however long and often events are lost; two lists as one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from tracer.trace.manifest import Loss
from tracer.trace.schema import TABLES

WIDTH_NS = 10**9
LONGEST_WIDTH_NS = 60 * 10**9
MOST_ENTRIES = 2048
"""A day of losses in every second would otherwise fill the manifest, which ends at 16 MiB."""

MOST_LOST = (1 << 63) - 1
"""What a manifest holds of a count; those of a damaged trace may add up to more."""
MOST_KINDS = 64
"""Streams and causes of one trace; no recorder knows so many."""
OTHER = "other"
"""Stream of what is not of a table, where there are more kinds than that."""

Key = tuple[str, str | None]


class LossBook:
    """Merges losses of the same stream and cause that fall into one width of time.

    The first one is written at once, and what follows within the width becomes one row. When the
    list has grown to `MOST_ENTRIES`, neighbours in it become one, and from then on the width is
    twice as long, up to `LONGEST_WIDTH_NS`.
    """

    def __init__(self) -> None:
        self._entries: list[Loss] = []
        self._waiting: dict[Key, Loss] = {}
        self._next_ns: dict[Key, int] = {}
        self._width_ns = WIDTH_NS

    @property
    def entries(self) -> tuple[Loss, ...]:
        """All losses so far, for the manifest."""
        return (*self._entries, *self._waiting.values())

    def add(self, loss: Loss) -> None:
        """Take note of a loss; it becomes part of a row that `take` gives."""
        key = (loss.stream, loss.cause)
        waiting = self._waiting.get(key)
        self._waiting[key] = loss if waiting is None else merged([waiting, loss])

    def take(self, now_ns: int, *, everything: bool = False) -> list[Loss]:
        """Take the losses whose rows are to be written now.

        Args:
            now_ns: CLOCK_MONOTONIC.
            everything: Also those whose width has not passed.
        """
        keys = [key for key in self._waiting if everything or now_ns >= self._next_ns.get(key, 0)]
        for key in keys:
            self._next_ns[key] = now_ns + self._width_ns
        rows = [self._waiting.pop(key) for key in keys]
        self._entries += rows
        if len(self._entries) > MOST_ENTRIES:
            self._entries = halved(self._entries)
            self._width_ns = min(2 * self._width_ns, LONGEST_WIDTH_NS)
        return rows


def merged(losses: Sequence[Loss]) -> Loss:
    """Make one loss of several of the same side, stream and cause.

    Its span begins where the first began: at no known time if one of them does not know.
    """
    begins = [loss.since_ns for loss in losses if loss.since_ns is not None]
    return replace(
        losses[0],
        count=min(sum(loss.count for loss in losses), MOST_LOST),
        since_ns=min(begins) if len(begins) == len(losses) else None,
        until_ns=max(loss.until_ns for loss in losses),
    )


def united(first: Sequence[Loss], second: Sequence[Loss]) -> tuple[Loss, ...]:
    """Make one list of two that each know some of the same losses, and count none twice.

    One loss may be several in the other list, and longer or shorter. So losses of one side, stream
    and cause are held against each other as far as their spans touch, and of each such stretch the
    list that counts more is taken. Of a great many, neighbours become one, as in a `LossBook`.

    Returns:
        The losses, the host's first, by the end of their spans; at most `MOST_ENTRIES`.
    """

    def key(loss: Loss) -> tuple[bool, str, str]:
        return loss.side == "guest", loss.stream, loss.cause or ""

    told = [(loss, which) for which, losses in enumerate((first, second)) for loss in losses]
    both = _of_few_kinds(told)
    both.sort(key=lambda item: (key(item[0]), _begin_ns(item[0])))
    found: list[Loss] = []
    for _, group in groupby(both, lambda item: key(item[0])):
        for stretch in _stretches(list(group)):
            lists = [[loss for loss, which in stretch if which == side] for side in (0, 1)]
            found += max(lists, key=lambda losses: sum(loss.count for loss in losses))
    return tuple(sorted(_few(found), key=lambda loss: (loss.side == "guest", loss.until_ns)))


def _few(losses: Sequence[Loss]) -> Sequence[Loss]:
    while len(losses) > MOST_ENTRIES:  # of few kinds, so that many have a neighbour
        losses = halved(losses)
    return losses


def _of_few_kinds(told: list[tuple[Loss, int]]) -> list[tuple[Loss, int]]:
    """Forget causes, and streams that are no table, where a trace invents too many of them.

    Of all losses, so that a list that was made of another does so too, and the two stay alike.
    """
    if len({(loss.stream, loss.cause) for loss, _ in told}) <= MOST_KINDS:
        return told
    return [
        (replace(loss, stream=loss.stream if loss.stream in TABLES else OTHER, cause=None), which)
        for loss, which in told
    ]


def _begin_ns(loss: Loss) -> int:
    """Begin of a span; one that is not known may lie as far back as any."""
    return -1 if loss.since_ns is None else loss.since_ns


def _stretches(ordered: Sequence[tuple[Loss, int]]) -> Iterator[list[tuple[Loss, int]]]:
    """Part losses, in the order of their begins, where no span goes on into the next."""
    stretch: list[tuple[Loss, int]] = []
    reach_ns = -1
    for item in ordered:
        if stretch and _begin_ns(item[0]) > reach_ns:
            yield stretch
            stretch = []
        stretch.append(item)
        reach_ns = max(reach_ns, item[0].until_ns)
    if stretch:
        yield stretch


def halved(losses: Sequence[Loss]) -> list[Loss]:
    """Merge each loss with the next one of the same side, stream and cause, pair by pair."""

    def key(loss: Loss) -> tuple[str, str, str]:
        return loss.side, loss.stream, loss.cause or ""

    found = []
    for _, group in groupby(sorted(losses, key=key), key):
        alike = list(group)
        found += [merged(alike[i : i + 2]) for i in range(0, len(alike), 2)]
    return sorted(found, key=lambda loss: loss.until_ns)
