"""How Python's values reach the C extension: what its typed faces share."""

import errno as errno_names
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.native.types import Bytes, Memory, NativeError, Operations, Rule, Words


def load() -> tuple[Any, Any]:
    """Give cffi's `ffi` and the library.

    Raises:
        NativeError: The extension is not built.
    """
    try:
        from replay.native._core import ffi, lib
    except ImportError as error:
        raise NativeError(
            "the C extension replay.native._core is not built",
            reason=str(error),
            remedy="install a C compiler and run `make setup`, or `pip install -e .`",
        ) from error
    return ffi, lib


def memory_struct(memory: Memory) -> Any:
    """Describe a mapping as `struct aero_memory`."""
    ffi = load()[0]
    return ffi.new(
        "struct aero_memory *",
        [ffi.cast("uint8_t *", memory.base), memory.size_bytes, memory.fd, memory.shared],
    )


def map_struct(regions: Sequence[tuple[int, int, int]]) -> tuple[Any, Any]:
    """Describe guest memory as `struct aero_map`.

    Args:
        regions: (gpa, length_bytes, offset_bytes) of each region.

    Returns:
        What must stay alive as long as the struct is used; and the struct.
    """
    ffi = load()[0]
    columns = np.array(sorted(regions), np.uint64).reshape(-1, 3).T.copy()
    held = [array(ffi, column, np.uint64) for column in columns]
    return held, ffi.new("struct aero_map *", [*held, columns.shape[1]])


def array(ffi: Any, values: npt.NDArray[Any], dtype: type[np.generic]) -> Any:
    """Pass an array as it lies; ValueError where it is not what C expects."""
    if values.dtype != dtype or not values.flags.c_contiguous:
        raise ValueError(f"need contiguous {np.dtype(dtype)}, got {values.dtype}")
    # require_writable is left off: inputs may be read-only views of a file.
    return ffi.from_buffer(f"{np.dtype(dtype)}_t[]", values)


def check_pages(memory: Memory, state: Bytes) -> None:
    """Raise ValueError unless there is one element a page."""
    if len(state) != memory.size_bytes >> 12:
        raise ValueError(f"need one state a page, got {len(state)} for {memory.size_bytes} bytes")


def check_starts(wire: Bytes, start: Words, count: int) -> None:
    """Raise ValueError unless `start` cuts `wire` into `count` requests."""
    rises = len(start) == count + 1 and bool(np.all(start[1:] >= start[:-1]))
    if not rises or int(start[-1]) > len(wire):
        raise ValueError("request starts must rise and stay within the wire bytes")


def check(error: int, what: str, remedy: str = "") -> None:
    """Raise NativeError for an errno that is not 0."""
    if error:
        name = errno_names.errorcode.get(error, str(error))
        raise NativeError(what, reason=f"{name}: {os.strerror(error)}", remedy=remedy)


def refused(operations: Operations, index: int) -> NativeError:
    """Say which operation must not be carried out."""
    return NativeError(
        f"operation {index} of {len(operations.advice)} was refused, and none was carried out",
        reason=f"advice {operations.advice[index]} on offset {operations.offset_bytes[index]}, "
        f"length {operations.length_bytes[index]} is outside the memory, not whole pages, "
        "not possible on this backing, or in a call that it cannot share",
        remedy="check the strategy's plan with `aerostat whatif`",
    )


class Arguments(AbstractContextManager[tuple[Any, Any, Any]]):
    """Keeps the C views of memory, operations and rules alive during a call."""

    def __init__(self, memory: Memory, operations: Operations, rules: dict[int, Rule]) -> None:
        ffi = load()[0]
        size = len(operations.advice)
        optional = (operations.joined, operations.thread)
        columns = (operations.offset_bytes, operations.length_bytes, operations.request, *optional)
        if any(column is not None and len(column) != size for column in columns):
            raise ValueError("the arrays of operations differ in length")
        self._held = [
            array(ffi, operations.advice, np.uint8),
            array(ffi, operations.offset_bytes, np.uint64),
            array(ffi, operations.length_bytes, np.uint64),
            size,
            *(ffi.NULL if c is None else array(ffi, c, np.uint8) for c in optional),
            array(ffi, operations.request, np.int64),
        ]
        table = ffi.new("struct aero_rules *")
        for code, rule in rules.items():
            table.call[code], table.value[code] = rule.call, rule.value
            table.effect[code] = rule.effect
        self._all = (memory_struct(memory), ffi.new("struct aero_ops *", self._held), table)

    def __enter__(self) -> tuple[Any, Any, Any]:
        return self._all

    def __exit__(self, *_: object) -> None:
        return None
