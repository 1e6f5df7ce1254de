"""Messages that Arrow would follow into nothing; fuzzing found that they killed the process."""

import struct
from pathlib import Path

import pytest

from tests.unit.trace_samples import write_trace
from tracer.trace.errors import TraceError
from tracer.trace.reader import open_trace

SEGMENT = "requests/host-00001.arrow"
MESSAGE = 16
"""Where the first message's metadata begins: behind the magic, a mark and a length."""


def slots(raw: bytes, begin: int) -> int:
    """Where the vtable's offsets of fields begin in a flatbuffer (16 bits each, 0: absent)."""
    root = begin + struct.unpack_from("<I", raw, begin)[0]
    vtable = root - struct.unpack_from("<i", raw, root)[0]
    return vtable + 4


def without_field(raw: bytes, begin: int, field: int) -> bytes:
    changed = bytearray(raw)
    struct.pack_into("<H", changed, slots(raw, begin) + 2 * field, 0)
    return bytes(changed)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "a.balloon", batches=1, rows=2)


@pytest.mark.parametrize("field", [1, 2], ids=["no kind of header", "no header"])
def test_a_first_message_that_is_no_schema(path: Path, field: int) -> None:
    segment = path / SEGMENT
    segment.write_bytes(without_field(segment.read_bytes(), MESSAGE, field))
    with pytest.raises(TraceError, match="does not begin with a schema"):
        open_trace(path).table("requests")


def test_a_footer_without_a_schema(path: Path) -> None:
    raw = (path / SEGMENT).read_bytes()
    begin = len(raw) - 10 - struct.unpack_from("<i", raw, len(raw) - 10)[0]
    (path / SEGMENT).write_bytes(without_field(raw, begin, 1))
    with pytest.raises(TraceError, match="the footer has no schema"):
        open_trace(path).table("requests")
