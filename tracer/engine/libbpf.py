"""libbpf through ctypes, and the kernel's own type information read with it.

libbpf comes with BCC (Debian: libbpf1 is a dependency of libbpfcc).
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

from tracer.errors import BccError, ProbeError

_KIND_STRUCT, _KIND_UNION = 4, 5
_KIND_FUNC = 12
_BTF_DIRECTORY = Path("/sys/kernel/btf")
_WITH_BTF = "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y"
WITH_MODULE_TYPES = "boot a kernel built with CONFIG_DEBUG_INFO_BTF_MODULES=y"
UNLISTED = f"nothing where another way of this point works, else {WITH_MODULE_TYPES}"
"""What mends that BTF does not list a function: the ways after fentry need none."""


class _BtfType(ctypes.Structure):
    _fields_ = (("name_off", c_uint32), ("info", c_uint32), ("size", c_uint32))


class _BtfMember(ctypes.Structure):
    _fields_ = (("name_off", c_uint32), ("type", c_uint32), ("offset", c_uint32))


class LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0 (bpf/bpf.h); later ones only add at the end."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_char_p),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """Load libbpf, its functions declared.

    Raises:
        BccError: It is not installed.
    """
    try:
        loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BccError(
            "cannot load libbpf", reason=str(error), remedy="apt-get install python3-bpfcc"
        ) from error
    prototypes = {
        "btf__load_vmlinux_btf": (c_void_p, ()),
        "btf__load_module_btf": (c_void_p, (c_char_p, c_void_p)),
        "btf__find_by_name_kind": (c_int, (c_void_p, c_char_p, c_uint32)),
        "btf__type_by_id": (POINTER(_BtfType), (c_void_p, c_uint32)),
        "btf__name_by_offset": (c_char_p, (c_void_p, c_uint32)),
        "bpf_prog_load": (
            c_int,
            (c_int, c_char_p, c_char_p, c_char_p, c_size_t, POINTER(LoadOptions)),
        ),
        "bpf_link_create": (c_int, (c_int, c_int, c_uint32, c_void_p)),
        "bpf_map_create": (c_int, (c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p)),
        "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
        "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
        "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
        "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
        "bpf_btf_get_next_id": (c_int, (c_uint32, POINTER(c_uint32))),
        "bpf_btf_get_fd_by_id": (c_int, (c_uint32,)),
        "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
        "bpf_enable_stats": (c_int, (c_uint32,)),
        "bpf_raw_tracepoint_open": (c_int, (c_char_p, c_int)),
        "libbpf_num_possible_cpus": (c_int, ()),
    }
    for name, (result, arguments) in prototypes.items():
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    return loaded


@functools.cache
def _load_btf(module: str | None) -> int:
    """Parse the kernel's BTF, or a module's on top of it; 5 MiB each time, so once a process."""
    if module is None:
        handle = library().btf__load_vmlinux_btf()
    else:
        handle = library().btf__load_module_btf(module.encode(), _load_btf(None))
    if not handle:
        raise ProbeError(
            f"cannot read the type information of {module or 'the kernel'}",
            reason=f"{_BTF_DIRECTORY / (module or 'vmlinux')}: {os.strerror(ctypes.get_errno())}",
            remedy=_WITH_BTF,
        )
    return int(handle)


class Btf:
    """Types of the running kernel and, split on top of them, of one module.

    Args:
        module: The module's name; a driver built into the kernel has no BTF file of its own, and
            the kernel's is used.

    Raises:
        ProbeError: The kernel has no BTF (CONFIG_DEBUG_INFO_BTF).
    """

    def __init__(self, module: str | None = None) -> None:
        if not (_BTF_DIRECTORY / "vmlinux").exists():
            # Not left to libbpf, which goes on to look for an image with debug information.
            raise ProbeError(
                "the kernel has no type information (BTF)",
                reason=f"{_BTF_DIRECTORY / 'vmlinux'} is absent",
                remedy=_WITH_BTF,
            )
        self.module = module if module and (_BTF_DIRECTORY / module).exists() else None
        self._handle = _load_btf(self.module)

    def _find(self, name: str, kind: int) -> int | None:
        found = int(library().btf__find_by_name_kind(self._handle, name.encode(), kind))
        return found if found > 0 else None

    def _struct(self, name: str) -> tuple[int, ctypes.c_void_p]:
        number = self._find(name, _KIND_STRUCT)
        if number is None:
            raise ProbeError(
                f"the kernel's type information has no struct {name}", remedy=WITH_MODULE_TYPES
            )
        pointer = library().btf__type_by_id(self._handle, number)
        return number, ctypes.cast(pointer, ctypes.c_void_p)

    def struct_bytes(self, name: str) -> int:
        """Return the size of a struct in bytes.

        Raises:
            ProbeError: There is no such struct.
        """
        return int(_BtfType.from_address(self._struct(name)[1].value or 0).size)

    def member_offset_bytes(self, struct_name: str, *path: str) -> int:
        """Return the offset of a member of a struct in bytes.

        Args:
            struct_name: The struct.
            path: The member; or a member that is a struct, one of that, and so on. Members of an
                anonymous struct or union count as their owner's.

        Raises:
            ProbeError: The struct or the member does not exist.
        """
        number, offset_bytes = self._struct(struct_name)[0], 0
        for member in path:
            found = self._member(number, member)
            if found is None:
                text = f"struct {struct_name} of this kernel has no member {'.'.join(path)}"
                raise ProbeError(text, remedy="boot a kernel that has it")
            number, offset_bytes = found[0], offset_bytes + found[1]
        return offset_bytes

    def _member(self, number: int, name: str) -> tuple[int, int] | None:
        """Find a member of a struct or union by name: its type, and its offset in bytes."""
        pointer = library().btf__type_by_id(self._handle, number)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        head = _BtfType.from_address(address)
        if head.info >> 24 & 0x1F not in (_KIND_STRUCT, _KIND_UNION):
            return None
        bitfields = head.info >> 31
        for index in range(head.info & 0xFFFF):
            at = address + ctypes.sizeof(_BtfType) + index * ctypes.sizeof(_BtfMember)
            entry = _BtfMember.from_address(at)
            offset_bytes = int((entry.offset & 0xFFFFFF if bitfields else entry.offset) // 8)
            known = library().btf__name_by_offset(self._handle, entry.name_off)
            if known == name.encode():
                return int(entry.type), offset_bytes
            inner = self._member(int(entry.type), name) if not known else None
            if inner is not None:
                return inner[0], offset_bytes + inner[1]
        return None

    def function_id(self, name: str) -> int | None:
        """Return the BTF id of a function, or None where the kernel does not list it."""
        return self._find(name, _KIND_FUNC)
