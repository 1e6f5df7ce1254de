"""What several tests of ledgers share: its lines by name, and a page that was migrated."""

from tests.unit.capture_bundle import sent
from tracer.trace.schema import Caller, Queue

MIGRATED = [
    sent(4, Queue.INFLATE, [(42, 1)], (None, 600_000, 601_000, None, 610_000, None, None))
    | {"caller": Caller.MIGRATION},
    sent(5, Queue.DEFLATE, [(42, 1)], (None, 611_000, 612_000, None, 620_000, None, None))
    | {"caller": Caller.MIGRATION},
]


def lines(book):
    return {line.name: (line.pages, line.status) for line in book.lines}
