"""Makes BPF maps: those that a compiled source asks for, and each VM's rings."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_char, c_size_t, c_uint32, c_uint64
from dataclasses import dataclass

from tracer.engine.bpf_programs import denial, denial_remedy
from tracer.engine.libbpf import library
from tracer.errors import REPORT, BccError, ProbeError

_ARRAY_OF_MAPS, _HASH_OF_MAPS, _RINGBUF = 12, 13, 27
_NAME_BYTES = 15


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info of the kernel up to the name, since 4.15 (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
    )


class _CreateOptions(ctypes.Structure):
    """struct bpf_map_create_opts of libbpf 1.0 (bpf/bpf.h); later ones only add at the end."""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """What the kernel must know to make a map.

    Attributes:
        type: BPF_MAP_TYPE_ number.
        key_bytes: Size of a key; 0 in a ring.
        value_bytes: Size of a value; 0 in a ring.
        max_entries: How many it holds; of a ring its size in bytes.
        flags: BPF_F_ flags.
    """

    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int

    @property
    def holds_maps(self) -> bool:
        """Whether its values are maps."""
        return self.type in (_ARRAY_OF_MAPS, _HASH_OF_MAPS)


def shape_of(fd: int) -> Shape:
    """Ask the kernel what a map is like.

    Raises:
        OSError: It does not tell.
    """
    info = _MapInfo()
    size = c_uint32(ctypes.sizeof(info))
    if library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return Shape(info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)


def make_map(name: str, shape: Shape, inner_fd: int | None = None) -> int:
    """Make a map.

    Args:
        name: For `bpftool map`; at most 15 characters are kept.
        shape: What it is like.
        inner_fd: Where it holds maps, one of their kind.

    Returns:
        A file descriptor, the caller's.

    Raises:
        BccError: The kernel does not make it.
    """
    options = _CreateOptions(
        sz=ctypes.sizeof(_CreateOptions), inner_map_fd=inner_fd or 0, map_flags=shape.flags
    )
    fd = _create(name, shape, options)
    if fd >= 0:
        return fd
    error = ctypes.get_errno()
    if error == errno.EPERM:
        raise not_allowed()
    raise BccError(
        f"the kernel does not make the BPF map {name}",
        reason=os.strerror(error),
        remedy=REPORT,
    )


def not_allowed() -> BccError:
    """Say why this process may not make maps, and what mends that."""
    return BccError(
        "the kernel does not let this process make BPF maps",
        reason=denial(),
        remedy=denial_remedy(),
    )


def _create(name: str, shape: Shape, options: _CreateOptions | None) -> int:
    short = name[:_NAME_BYTES].encode()
    sizes = (shape.key_bytes, shape.value_bytes, shape.max_entries)
    by_reference = ctypes.byref(options) if options is not None else None
    return int(library().bpf_map_create(shape.type, short, *sizes, by_reference))


def create_ring(name: str, size_bytes: int) -> int:
    """Make a ring buffer map (BPF_MAP_TYPE_RINGBUF, since 5.8).

    Args:
        name: For `bpftool map`; at most 15 characters are kept.
        size_bytes: Its data size, a power of two of pages.

    Returns:
        A file descriptor, the caller's.

    Raises:
        ProbeError: The kernel refuses it.
    """
    fd = _create(name, Shape(_RINGBUF, 0, 0, size_bytes, 0), None)
    if fd < 0:
        raise ProbeError(
            f"cannot make a ring of {size_bytes} bytes",
            reason=os.strerror(ctypes.get_errno()),
            remedy="use a smaller --ring; before Linux 5.11 it counts against RLIMIT_MEMLOCK",
        )
    return fd


def put_descriptor(array_fd: int, index: int, fd: int, what: str) -> None:
    """Put a map into an array of maps, or a program into one of programs.

    Args:
        array_fd: The array.
        index: Where to.
        fd: Descriptor of what is put there.
        what: Names that in an error.

    Raises:
        ProbeError: The kernel refuses it.
    """
    key, value = c_uint32(index), c_uint32(fd)
    if library().bpf_map_update_elem(array_fd, ctypes.byref(key), ctypes.byref(value), 0):
        raise ProbeError(
            f"the kernel does not put {what} into an array",
            reason=os.strerror(ctypes.get_errno()),
            remedy=REPORT,
        )


def drop_map(outer_fd: int, index: int) -> None:
    """Take a map out of an array of maps; nothing where there is none."""
    library().bpf_map_delete_elem(outer_fd, ctypes.byref(c_uint32(index)))
