"""Arrays in memory that other processes map: a replay holds a plan once, however many run it."""

from __future__ import annotations

import mmap
import os
import pickle
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import fields
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from replay.native.selecting import give_back
from tracer.trace.errors import AerostatError

SMALL_BYTES = 1 << 16
"""Arrays below this travel with the job: a mapping costs more than they do."""
ALIGNED_BYTES = 64
"""A cache line."""

Column = npt.NDArray[Any]


class Inherited(Protocol):
    """A descriptor on its way to another process."""

    def detach(self) -> int:
        """Its number there."""


class Segment(mmap.mmap):
    """Shared memory without a name; it lives as long as arrays in it or processes that map it."""

    fd: int

    @classmethod
    def of_size(cls, size_bytes: int) -> Segment:
        """Make one.

        Raises:
            AerostatError: The kernel refused.
        """
        try:
            fd = os.memfd_create("aerostat-plan", os.MFD_CLOEXEC)
            os.ftruncate(fd, size_bytes)
            made = cls(fd, size_bytes)
        except OSError as error:
            raise AerostatError(
                f"cannot make shared memory of {size_bytes} bytes for a plan",
                reason=str(error),
                remedy="free memory, or allow more open files (ulimit -n)",
            ) from error
        made.fd = fd
        weakref.finalize(made, os.close, fd)
        return made


class Part(NamedTuple):
    """Bytes of one of several segments."""

    segment: int
    offset_bytes: int
    size_bytes: int


def share(*values: object) -> None:
    """Move the large arrays of some dataclasses to one segment, where they are read-only.

    What they hold stays the same, and only where it lies changes. They are moved one by one, so
    that there are never two whole copies.

    Args:
        values: Instances of dataclasses; those in their fields are looked into as well. An array
            that lies in a segment already stays there.

    Raises:
        AerostatError: There is no shared memory.
    """
    give_back()
    places = list(_places(values))
    sizes = [-(-getattr(*place).nbytes // ALIGNED_BYTES) * ALIGNED_BYTES for place in places]
    if not places:
        return
    segment = Segment.of_size(sum(sizes))
    at = 0
    for (holder, name), size in zip(places, sizes, strict=True):
        column: Column = getattr(holder, name)
        moved = np.frombuffer(segment, column.dtype, column.size, at)
        moved[:] = column
        moved.flags.writeable = False
        object.__setattr__(holder, name, moved)  # frozen for what it holds, which is the same
        at += size
        del column
        give_back()


def _places(values: Sequence[object]) -> Iterator[tuple[object, str]]:
    """Where large arrays are; names alone, since a reference would keep the old array alive."""
    for value in values:
        for field in fields(value):  # type: ignore[arg-type]  # instances of dataclasses
            column = getattr(value, field.name)
            if not isinstance(column, np.ndarray) or column.nbytes < SMALL_BYTES:
                continue
            if column.ndim == 1 and _segment_of(column) is None:
                yield value, field.name


def _segment_of(column: Column) -> Segment | None:
    below: object = column
    while isinstance(below, np.ndarray):
        below = below.base
    found = below.obj if isinstance(below, memoryview) else below
    return found if isinstance(found, Segment) else None


class Packed:
    """A value on its way to another process, which gets the value itself.

    Arrays in segments are not sent: the other process maps the same memory. All others are copied.

    Args:
        value: Anything that can be pickled; not changed while this is sent.

    Attributes:
        content: The pickle, without the content of arrays.
        buffers: That content, in its order, as it lies here.
        parts: The same as it is sent: bytes, which the other process may write to, or where in a
            segment they lie.
    """

    def __init__(self, value: object) -> None:
        self.buffers: list[memoryview] = []
        self._segments: list[Segment] = []
        found: list[pickle.PickleBuffer] = []
        self.content = pickle.dumps(value, protocol=5, buffer_callback=found.append)
        self.parts = [self._part(memoryview(buffer)) for buffer in found]

    def _part(self, buffer: memoryview) -> Part | bytearray:
        column = buffer.obj
        self.buffers.append(buffer)
        segment = _segment_of(column) if isinstance(column, np.ndarray) else None
        if segment is None or not isinstance(column, np.ndarray):
            return bytearray(buffer)
        if segment not in self._segments:
            self._segments.append(segment)
        begin = np.frombuffer(segment, np.uint8).ctypes.data
        index = self._segments.index(segment)
        return Part(index, column.ctypes.data - begin, buffer.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Stand for the value; descriptors can be sent only while a process is started."""
        held = [(DupFd(segment.fd), len(segment)) for segment in self._segments]
        return _unpack, (self.content, self.parts, held)


def _unpack(
    content: bytes, parts: Sequence[Part | bytearray], held: Sequence[tuple[Inherited, int]]
) -> object:
    segments = [_mapped(descriptor.detach(), size_bytes) for descriptor, size_bytes in held]
    buffers = [
        memoryview(segments[part.segment])[part.offset_bytes : part.offset_bytes + part.size_bytes]
        if isinstance(part, Part)
        else part
        for part in parts
    ]
    return pickle.loads(content, buffers=buffers)


def _mapped(fd: int, size_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size_bytes, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)
