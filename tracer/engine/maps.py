"""BPF maps by their descriptors, with keys and values as C structures."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Any

from tracer.engine.libbpf import library
from tracer.errors import ProbeError

_SCALARS: dict[str, type[Any]] = {
    "_Bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "signed char": ctypes.c_byte,
    "unsigned char": ctypes.c_ubyte,
    "short": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "long long": ctypes.c_longlong,
    "unsigned long long": ctypes.c_ulonglong,
}


def c_type(described: Any) -> type[Any]:
    """Make the ctypes type of a C type.

    Args:
        described: As BCC writes it: a scalar's name, or [name, fields, kind] of a structure or a
            union, where a field is [name, type] or [name, type, [length of an array]].

    Raises:
        KeyError: Of a scalar that no record of ours has.
        ValueError: Of a bit field, which no record of ours has either.
    """
    if isinstance(described, str):
        return _SCALARS[described]
    name, fields, *kind = described
    base = ctypes.Union if kind == ["union"] else ctypes.Structure
    content: dict[str, Any] = {"_fields_": [_field(field) for field in fields]}
    if kind == ["struct_packed"]:
        content["_pack_"] = 1
    return type(str(name), (base,), content)


def _field(described: list[Any]) -> tuple[str, type[Any]]:
    name, kind, *more = described
    if not more:
        return name, c_type(kind)
    if isinstance(more[0], list):
        made = c_type(kind)
        for length in reversed(more[0]):
            made = made * length
        return name, made
    if isinstance(more[0], str):  # a structure inside, without a type's name of its own
        return name, c_type(described)
    raise ValueError(f"field {name} is a bit field")


class Map:
    """One map, used as a dictionary of C structures.

    Args:
        fd: Its descriptor, which stays the caller's.
        key: C type of its keys, described (see c_type).
        leaf: That of its values.

    Attributes:
        Key: Type of its keys.
        Leaf: Type of its values, zero where it is made without arguments.
    """

    def __init__(self, fd: int, key: Any, leaf: Any) -> None:
        self.fd = fd
        self.Key, self.Leaf = c_type(key), c_type(leaf)

    def __getitem__(self, key: Any) -> Any:
        """Read a value: a copy.

        Raises:
            KeyError: There is none.
        """
        leaf = self.Leaf()
        if library().bpf_map_lookup_elem(self.fd, self._at(key), ctypes.byref(leaf)):
            raise KeyError(key)
        return leaf

    def __setitem__(self, key: Any, leaf: Any) -> None:
        """Write a value.

        Raises:
            ProbeError: The map has no room.
        """
        if library().bpf_map_update_elem(self.fd, self._at(key), ctypes.byref(leaf), 0):
            reason = os.strerror(ctypes.get_errno())
            raise ProbeError("the kernel takes no more into a map", reason=reason)

    def __delitem__(self, key: Any) -> None:
        """Take a value out.

        Raises:
            KeyError: There is none.
        """
        if library().bpf_map_delete_elem(self.fd, self._at(key)):
            raise KeyError(key)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Go through keys and values, each once; what comes and goes meanwhile may be missed."""
        before, key = None, self.Key()
        seen: set[bytes] = set()
        while not library().bpf_map_get_next_key(self.fd, before, ctypes.byref(key)):
            given = self.Key.from_buffer_copy(key)
            before = ctypes.byref(given)
            # From a key that has gone meanwhile a hash goes back to its begin.
            if bytes(given) in seen:
                continue
            seen.add(bytes(given))
            with contextlib.suppress(KeyError):  # it may have gone
                yield given, self[given]
        if ctypes.get_errno() != errno.ENOENT:
            raise ProbeError("cannot read a map", reason=os.strerror(ctypes.get_errno()))

    def total(self, key: Any) -> int:
        """Add up the numbers that all CPUs have at a key of a per-CPU array of 64-bit numbers."""
        values = (ctypes.c_uint64 * library().libbpf_num_possible_cpus())()
        if library().bpf_map_lookup_elem(self.fd, self._at(key), values):
            raise KeyError(key)
        return sum(values)

    def _at(self, key: Any) -> Any:
        return ctypes.byref(key if isinstance(key, self.Key) else self.Key(key))
