"""Both sides of a small capture as one trace, and a ledger's lines by name."""

from tests.unit.capture_bundle import (
    write_guest,
    write_host,
)
from tracer.account.merge import merge_sides
from tracer.trace.reader import open_trace


def both(tmp_path, *, host=None, guest=None):
    path = write_host(tmp_path / "vm.balloon", **(host or {}))
    merge_sides(path, write_guest(tmp_path / "guest.balloon", **(guest or {})))
    return open_trace(path)


def lines(book):
    return {line.name: (line.pages, line.status) for line in book.lines}
