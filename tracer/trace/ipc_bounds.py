"""What an Arrow message says it holds, read before anything is allocated for it.

Arrow's reader believes the uncompressed length that stands before each compressed buffer. A file of
a few bytes can so ask for any amount of memory. These functions read that claim first, straight
from the message's metadata (format/Message.fbs and format/File.fbs of Apache Arrow, version 5).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

_CONTINUES = -1
"""What stands before the length of a message's metadata."""
_SCHEMA, _RECORD_BATCH = 1, 3
"""Values of the union MessageHeader in format/Message.fbs."""
_TAIL = b"ARROW1"
_BUFFER_BYTES = 16
_BLOCK_BYTES = 24


@dataclass(frozen=True, slots=True)
class Claim:
    """What decoding one record batch would take: rows, and bytes of memory."""

    rows: int
    decoded_bytes: int


class Block(NamedTuple):
    """One record batch in the file; the 8 bytes before its metadata count as metadata."""

    offset: int
    metadata_bytes: int
    body_bytes: int


class _Table:
    """A flatbuffer table, by field number; every access is checked against the buffer's end."""

    def __init__(self, raw: bytes, position: int) -> None:
        self._raw = raw
        self._position = position
        self._vtable = position - _unpack("<i", raw, position)

    def _slot(self, field: int) -> int | None:
        at = 4 + 2 * field
        if at >= _unpack("<H", self._raw, self._vtable):
            return None
        offset = _unpack("<H", self._raw, self._vtable + at)
        return self._position + offset if offset else None

    def scalar(self, field: int, kind: str) -> int:
        """A number, 0 where the field is absent (the flatbuffer default)."""
        at = self._slot(field)
        return 0 if at is None else _unpack(kind, self._raw, at)

    def table(self, field: int) -> "_Table | None":
        """A nested table, or None."""
        at = self._slot(field)
        return None if at is None else _Table(self._raw, at + _unpack("<I", self._raw, at))

    def structs(self, field: int, form: str, step: int) -> list[tuple[int, ...]]:
        """A vector of structs of `step` bytes each."""
        at = self._slot(field)
        if at is None:
            return []
        start = at + _unpack("<I", self._raw, at)
        length = _unpack("<I", self._raw, start)
        end = start + 4 + length * step
        if end > len(self._raw):
            raise ValueError("a vector ends beyond its message")
        return [struct.unpack_from(form, self._raw, p) for p in range(start + 4, end, step)]


def _unpack(form: str, raw: bytes, at: int) -> int:
    if at < 0:
        raise ValueError("an offset leads before its message")
    try:
        return int(struct.unpack_from(form, raw, at)[0])
    except struct.error as problem:
        raise ValueError("an offset leads beyond its message") from problem


def message_bytes(read: Callable[[int, int], bytes]) -> int:
    """Say how many bytes the next message claims to take, so that no more need be read.

    Args:
        read: Gives bytes of the file: how far behind the begin of the message, and how many.

    Returns:
        At least what Arrow would take of it; it is left to Arrow to refuse what is no message.
    """
    prefix = read(0, 8)
    if len(prefix) < 8:
        return len(prefix)
    # Before Arrow 0.15 a message began with the length at once.
    begin = 8 if _unpack("<i", prefix, 0) == _CONTINUES else 4
    length = _unpack("<i", prefix, begin - 4)
    if length <= 0:
        return 8
    metadata = read(begin, length)
    try:
        message = _Table(metadata, _unpack("<I", metadata, 0))
        return begin + length + max(0, message.scalar(3, "<q"))
    except ValueError:
        return begin + length


def require_schema(metadata: bytes) -> None:
    """Refuse a message that holds no schema: Arrow follows its header unseen, null or not.

    Args:
        metadata: The message's flatbuffer, without its length prefix.

    Raises:
        ValueError: It is another message, or has no header.
    """
    message = _Table(metadata, _unpack("<I", metadata, 0))
    if message.scalar(1, "<B") != _SCHEMA or message.table(2) is None:
        raise ValueError("the file does not begin with a schema")


def claim(metadata: bytes, body: memoryview) -> Claim:
    """Read what a record batch claims to hold.

    Args:
        metadata: The message's flatbuffer, without its length prefix.
        body: The message's body, where each compressed buffer begins with its own length.

    Raises:
        ValueError: The message is not a record batch, or contradicts itself.
    """
    message = _Table(metadata, _unpack("<I", metadata, 0))
    batch = message.table(2)
    if message.scalar(1, "<B") != _RECORD_BATCH or batch is None:
        raise ValueError("a message is not a record batch")
    rows = batch.scalar(0, "<q")
    compressed = batch.table(3) is not None
    total = 0
    for offset, length in batch.structs(2, "<qq", _BUFFER_BYTES):
        if min(offset, length) < 0 or offset + length > len(body):
            raise ValueError("a buffer lies outside its message")
        total += _decoded(body, offset, length) if compressed else length
    if not 0 <= rows <= total * 8:
        raise ValueError(f"a batch claims {rows} rows in {total} bytes")
    return Claim(rows, total)


def _decoded(body: memoryview, offset: int, length: int) -> int:
    """Uncompressed size of one buffer; -1 before it means that it is stored as it is."""
    if length == 0:
        return 0
    if length < 8:
        raise ValueError("a compressed buffer is shorter than its own length field")
    claimed: int = struct.unpack_from("<q", body, offset)[0]
    if claimed < -1:
        raise ValueError("a compressed buffer claims a negative length")
    return length - 8 if claimed == -1 else claimed


def footer_blocks(raw: memoryview) -> list[Block]:
    """Where the footer of an IPC file says its record batches are.

    Args:
        raw: The file, or its magic and its footer alone.

    Returns:
        One block per batch; dictionaries are refused, for the format has none.

    Raises:
        ValueError: There is no whole footer.
    """
    if len(raw) < 24 or bytes(raw[-6:]) != _TAIL:
        raise ValueError("the file has no footer")
    length: int = struct.unpack_from("<i", raw, len(raw) - 10)[0]
    if not 0 < length <= len(raw) - 18:
        raise ValueError("the footer's length is wrong")
    text = bytes(raw[len(raw) - 10 - length : len(raw) - 10])
    footer = _Table(text, _unpack("<I", text, 0))
    if footer.table(1) is None:  # Arrow would follow it all the same
        raise ValueError("the footer has no schema")
    if footer.structs(2, "<qi4xq", _BLOCK_BYTES):
        raise ValueError("the file has dictionaries")
    return [Block(*block) for block in footer.structs(3, "<qi4xq", _BLOCK_BYTES)]
