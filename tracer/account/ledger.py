"""Closes a capture: guest, host, device and disk have to agree on the pages moved."""

from dataclasses import dataclass
from functools import cached_property

from tracer.account.join import Joined, join
from tracer.account.ledger_host import DISCARDED, CallSums, actual_events
from tracer.account.ledger_stats import stats_counts
from tracer.account.ledger_sums import RequestSums
from tracer.trace.manifest import LedgerLine, SideInfo
from tracer.trace.reader import Trace
from tracer.trace.schema import PAGE_BYTES, Queue, Side

EQUAL = "equal"
NOT_OBSERVED = "not observed"
NOT_COMPARED = "not compared"
"""Counted, but there is nothing to hold it against: the first line of a queue, or its only one."""

PAGE_QUEUES = (*DISCARDED, Queue.FREE_PAGE_HINT)
"""Queues that name pages."""
_COUNTED = (Queue.INFLATE, Queue.DEFLATE)
"""Queues whose pages the guest's kernel and the device count themselves."""
_DEVICE = "device: change of actual"


@dataclass(frozen=True)
class Ledger:
    """Every count of the same pages, side by side.

    Attributes:
        lines: One per source; `pages` is None where it was not observed.
        balanced: True if counts of the same pages were held against each other and all agree, False
            if some do not or events are lost, None if no such count could be held against another.
        why_open: Why none could; empty where `balanced` is not None.
    """

    lines: tuple[LedgerLine, ...]
    balanced: bool | None
    why_open: str = ""


def ledger(trace: Trace, joined: Joined | None = None) -> Ledger:
    """Hold every count of ballooned pages against the others.

    The tables are read a batch at a time, and added up: memory does not grow with the trace, but by
    what `join` keeps of each request where both sides are there.

    Args:
        trace: A trace of one side or both.
        joined: Its pairs, if the caller has them already.

    Returns:
        Lines in the order guest, host, device, disk; each says against what it was held.
    """
    book = _Book(trace, joined)
    for queue in PAGE_QUEUES:
        book.open_queue(queue)
    book.migrations()
    book.statistics()
    book.device()
    book.disk()
    book.losses()
    balanced = book.balanced()
    return Ledger(tuple(book.lines), balanced, book.why_open() if balanced is None else "")


class _Book:
    """Collects the lines and what they have to agree with."""

    def __init__(self, trace: Trace, joined: Joined | None) -> None:
        self.lines: list[LedgerLine] = []
        self._trace = trace
        self._guest = _side(trace, "guest")
        self._host = _side(trace, "host")
        self._held = 0
        self._wrong = 0
        self._moved: dict[Queue, int | None] = {}
        both = self._host is not None and self._guest is not None
        joined = joined or join(trace) if both else None
        self._clock = None if joined is None else joined.clock
        self._actual = actual_events(trace)
        between = None if self._actual is None else (self._actual[0][0], self._actual[1][0])
        self._sums = RequestSums(trace, joined, between)

    def balanced(self) -> bool | None:
        """Say whether all that was held against something agreed."""
        if self._wrong:
            return False
        return True if self._held else None

    def why_open(self) -> str:
        """Say why no two counts of the same pages could be held against each other."""
        if self._sums.queues.intersection(PAGE_QUEUES):
            return "its pages were counted in one place alone"
        if self._calls.rows:
            return "it holds system calls alone, and nothing else counted their pages"
        return "the balloon did not move while it was recorded"

    def open_queue(self, queue: Queue) -> None:
        """Write the lines of one queue."""
        name = queue.name.lower()
        guest = self._pages(Side.GUEST, queue, self._guest)
        host = self._pages(Side.HOST, queue, self._host)
        apart, early = (self._sums.of(side, queue).apart_pages for side in (Side.HOST, Side.GUEST))
        rejected = self._sums.of(Side.HOST, queue).rejected.known
        unseen = self._lost_pages(self._guest, name)
        # The device's own count goes over the host's recording.
        moved = host if guest is None or apart or early else guest + unseen
        self._moved[queue] = None if moved is None else moved - rejected
        if not guest and not host and self._counter_pages(queue) in (None, 0):
            return
        self._line(f"{name}: guest driver", guest, "guest requests", None)
        if unseen and guest is not None:
            source = "guest requests, and the pages that lost ones named"
            self._line(f"{name}: guest driver and lost", guest + unseen, source, None)
        if queue in _COUNTED:
            self._counted(queue, name)
        within = None if host is None else host - apart
        expected = None if guest is None else guest + unseen - early
        lost = self._lost_pages(self._host, name)
        unclear = queue in _COUNTED and self._lost_pages(self._host, "other") > 0
        whole = None if lost or unclear else expected
        self._line(f"{name}: host requests", within, "host requests", whole)
        if lost and within is not None:
            source = "host requests, and the pages that lost ones named"
            expected = None if unclear else expected
            self._line(f"{name}: host requests and lost", within + lost, source, expected)
        if apart:
            source = "host requests while the guest was not recorded"
            self._line(f"{name}: host only", apart, source, None)
        if early:
            source = "guest requests while the host was not recorded"
            self._line(f"{name}: guest only", early, source, None)
        if rejected:
            source = "pages outside the guest's memory: named, and not followed"
            self._line(f"{name}: host rejected", rejected, source, None)
        if queue in DISCARDED:
            self._discarded(queue, name, None if host is None else host - rejected)

    def migrations(self) -> None:
        """Hold the pages that compaction moved against the guest kernel's own count of them.

        Each move sends two requests, the new page in and the old one out; virtballoon_migratepage
        counts it once (drivers/virtio/virtio_balloon.c, since 3.18).
        """
        moved = None if self._guest is None else self._sums.counted["migration"].all_pages
        if moved or self._vmstat_pages("balloon_migrate"):
            self._line("migration: guest driver", moved, "inflates of moved pages", None)
            self._counter_line("migration", "balloon_migrate")

    def statistics(self) -> None:
        """Hold the answers the device received against those the driver sent."""
        found = stats_counts(self._trace, self._sums, self._clock)
        if not found.guest and not found.host:
            return
        self._line("stats: guest driver", found.guest, "answers, in requests", None)
        within, expected = found.host, found.guest
        if within is not None and found.host_only is not None:
            within -= found.host_only
        elif self._clock is None:
            # Which of them the guest's recorder could see is not known.
            expected = None
        self._line("stats: host requests", within, "answers, in requests", expected)
        if found.host_only:
            source = "answers while the guest was not recorded, in requests"
            self._line("stats: host only", found.host_only, source, None)

    def device(self) -> None:
        """Write the device's own `actual` beside what the requests add up to."""
        elsewhere = _counter(self._host, "misplaced_requests")
        if elsewhere:
            source = "requests outside the memory map: GPAs of calls are wrong"
            self._line("memory map: host requests", elsewhere, source, 0, is_moved=False)
        # That nothing changed where nothing was asked for is no proof of a count.
        has_moved = bool(self._sums.queues.intersection(_COUNTED))
        begin, end = (_counter(self._host, f"actual_bytes_{when}") for when in ("begin", "end"))
        if begin is not None and end is not None:
            inflated, deflated = (self._moved.get(q) for q in (Queue.INFLATE, Queue.DEFLATE))
            net = None if inflated is None or deflated is None else inflated - deflated
            # `actual` is what the guest has left, so it falls by what the balloon takes.
            change, source = (begin - end) // PAGE_BYTES, "actual_bytes, begin less end"
            self._line(_DEVICE, change, source, net, is_moved=has_moved)
            return
        source = "actual, first event less last, and the requests between"
        if self._actual is None:
            self._line(_DEVICE, None, source, None)
            return
        first, last = self._actual
        change = (first[1] - last[1]) // PAGE_BYTES
        moved = [self._sums.of(Side.HOST, queue).net_pages for queue in _COUNTED]
        net = None if self._trace.losses else moved[0] - moved[1]
        self._line(_DEVICE, change, source, net, is_moved=has_moved)

    def disk(self) -> None:
        """Write how many request rows the manifest promises and how many can be read."""
        for side in Side:
            name = side.name.lower()
            if _side(self._trace, name) is None:
                continue
            promised = sum(
                segment.rows
                for segment in self._trace.manifest.segments
                if segment.table == "requests" and segment.side == name
            )
            source = "requests table, in rows"
            self._line(
                f"disk: {name} request rows",
                self._sums.rows[side],
                source,
                promised,
                is_moved=False,
            )

    def losses(self) -> None:
        """Write what was lost; anything lost unbalances the trace."""
        streams = [(self._guest, "guest", "requests")]
        streams += [(self._host, "host", "requests"), (self._host, "host", "calls")]
        for info, side, stream in streams:
            if info is None:
                continue
            listed = sum(
                loss.count
                for loss in self._trace.losses
                if loss.side == side and loss.stream == stream
            )
            counted = _counter(info, f"lost_{stream}") or 0
            lost = max(listed, counted)
            self._line(f"loss: {side} {stream}", lost, "events not delivered", 0, is_moved=False)
        other = self._lost_pages(self._host, "other")
        if other:
            source = "pages of lost requests, whether in- or deflates could not be read"
            self._line("loss: host pages of either queue", other, source, 0, is_moved=False)

    def _line(
        self,
        name: str,
        value: int | None,
        source: str,
        expected: int | None,
        *,
        is_moved: bool = True,
    ) -> None:
        """Write one line; a value held against nothing neither balances nor unbalances.

        Args:
            name: Of the line.
            value: What was counted, None if it was not observed.
            source: By whom.
            expected: What it is held against, None for nothing.
            is_moved: Whether it counts what moved; a line that does not can only unbalance, since
                no loss of nothing proves no count.
        """
        if value is None:
            status = NOT_OBSERVED
        elif expected is None:
            status = NOT_COMPARED
        elif value == expected:
            status = EQUAL
        else:
            status = f"differs by {value - expected:+d}"
        if value is not None and expected is not None:
            self._held += is_moved
            self._wrong += value != expected
        self.lines.append(LedgerLine(name=name, pages=value, source=source, status=status))

    def _pages(self, side: Side, queue: Queue, info: SideInfo | None) -> int | None:
        """Pages of one side's requests; None where that side was not traced."""
        if info is None:
            return None
        return self._sums.of(side, queue).pages.known

    def _lost_pages(self, info: SideInfo | None, name: str) -> int:
        """Pages of requests that one side's probes saw and could not keep."""
        return _counter(info, f"lost_{name}_pages") or 0

    def _counted(self, queue: Queue, name: str) -> None:
        """Hold the guest kernel's own counter against the driver's requests.

        balloon_page_enqueue and balloon_page_dequeue count guest pages (mm/balloon_compaction.c,
        since 3.18); a page migration sends two requests and counts neither.
        """
        self._counter_line(name, f"balloon_{name}")

    def _counter_line(self, name: str, counter: str) -> None:
        """Hold a counter against what its requests named while it was watched."""
        source, expected = f"/proc/vmstat {counter}, end less begin", None
        if self._guest is not None:
            sent = self._sums.counted[name]
            lost = self._lost_pages(self._guest, name)
            expected = sent.pages + lost if sent.is_exact else None
            source += "" if sent.is_exact else "; a request was under way at one of them"
        self._line(f"{name}: guest kernel counter", self._vmstat_pages(counter), source, expected)

    def _counter_pages(self, queue: Queue) -> int | None:
        return self._vmstat_pages(f"balloon_{queue.name.lower()}")

    def _vmstat_pages(self, name: str) -> int | None:
        """Change of one of the guest's counters over the capture, in 4 KiB pages."""
        begin, end = (_counter(self._guest, f"vmstat_{name}_{when}") for when in ("begin", "end"))
        if self._guest is None or begin is None or end is None:
            return None
        return (end - begin) * (self._guest.page_size_bytes // PAGE_BYTES)

    @cached_property
    def _calls(self) -> CallSums:
        """Sums of the calls, which are most of a trace: read where a line needs them."""
        return CallSums(self._trace, self._sums)

    def _discarded_pages(self, queue: Queue) -> int | None:
        """Pages that calls gave back for a queue's requests; None if not observed.

        Requests say how many bytes all their calls covered, whatever these did: no call in the
        table where requests count some means that what they were is not known.
        """
        calls = self._sums.of(Side.HOST, queue).calls.total
        if self._host is None or calls is None:
            return None
        pages = self._calls.discarded_pages(queue)
        return 0 if pages is None and not calls else pages

    def _discarded(self, queue: Queue, name: str, followed: int | None) -> None:
        """Hold what the host's system calls covered against what its requests named in memory."""
        pages = self._discarded_pages(queue)
        sizes = [region.page_size_bytes for region in self._trace.manifest.regions]
        if queue is not Queue.DEFLATE:
            source = "successful system calls"
            if max(sizes, default=PAGE_BYTES) > PAGE_BYTES and (pages or 0) < (followed or 0):
                source += "; of a larger host page all or nothing goes"
                followed = None
            self._line(f"{name}: host discarded", pages, source, followed)
        elif pages:
            # Advice on deflate is a hint that many VMMs do not give; none given is no imbalance.
            self._line(f"{name}: host advised", pages, "successful WILLNEED calls", followed)
        else:
            self._line(f"{name}: host advised", None, "no successful WILLNEED call", None)


def _side(trace: Trace, name: str) -> SideInfo | None:
    return trace.manifest.sides.get(name)


def _counter(info: SideInfo | None, key: str) -> int | None:
    return None if info is None else info.counters.get(key)
