"""Compiles a BPF source with BCC, in a process of its own (see compile_process.py).

The only module that imports BCC: its LLVM and clang take 80 MiB of every process that maps them,
and a recorder stays for days. This process lasts as long as the compiler works. It makes the maps,
and hands them over as descriptors with the programs' instructions, which name the maps by the
numbers that the descriptors have here.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import socket
import struct
import sys
from typing import Any

from tracer.errors import BccError

_INSTALL_BCC = (
    "apt-get install python3-bpfcc, and make the environment with "
    "/usr/bin/python3 -m venv --system-site-packages"
)
LENGTH = struct.Struct("<Q")
"""What an answer begins with: how many bytes of JSON follow. The descriptors come along with it."""


def import_bcc() -> Any:
    """Import BCC's `bcc` module.

    Raises:
        BccError: It is missing, its library is, or it is the unrelated `bcc` of the Python package
            index.
    """
    try:
        import bcc
    except ImportError as error:
        raise BccError("cannot import BCC", reason=str(error), remedy=_INSTALL_BCC) from error
    except OSError as error:
        raise BccError(
            "BCC's own library cannot be loaded",
            reason=str(error),
            remedy="apt-get install --reinstall libbpfcc python3-bpfcc",
        ) from error
    if not hasattr(bcc, "BPF"):
        raise BccError(
            "the installed package `bcc` is not BCC",
            reason=f"{getattr(bcc, '__file__', 'it')} has no class BPF",
            remedy="pip uninstall --yes bcc; apt-get install python3-bpfcc",
        )
    return bcc


def serve(connection: socket.socket) -> None:
    """Take one source, answer with what became of it, and end.

    The job and the answer are JSON. Job: `text`, `flags` of the compiler, and `headers`, a
    directory in the place of kernel headers. Answer: `functions`, instructions in base64, and
    `maps`; or `error`, the parts of a BccError; or `failed`, where descriptor 2 was told why.
    """
    job = json.loads(_all_of(connection))
    try:
        answer, descriptors = _compiled(job)
    except BccError as error:
        answer = {"error": {"what": error.what, "reason": error.reason, "remedy": error.remedy}}
        descriptors = []
    data = json.dumps(answer).encode()
    socket.send_fds(connection, [LENGTH.pack(len(data))], descriptors)
    connection.sendall(data)


def _all_of(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def _compiled(job: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    bcc = import_bcc()
    # BCC looks for kernel headers here; ours are enough, so none need be installed.
    os.environ["BCC_KERNEL_SOURCE"] = job["headers"]
    try:
        program = bcc.BPF(text=job["text"].encode(), cflags=job["flags"])
    except Exception as error:
        return {"failed": str(error)}, []
    library, module = bcc.libbcc.lib, program.module
    # These two are in the library (bcc/bpf_module.h, since 0.1), and BCC's Python declares neither.
    library.bpf_num_tables.argtypes = (ctypes.c_void_p,)
    library.bpf_table_name.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.bpf_table_name.restype = ctypes.c_char_p
    functions = {}
    for at in range(library.bpf_num_functions(module)):
        name = library.bpf_function_name(module, at)
        functions[name.decode()] = base64.b64encode(program.dump_func(name)).decode()
    maps = [_described(library, module, at) for at in range(library.bpf_num_tables(module))]
    return {"functions": functions, "maps": maps}, [each["fd"] for each in maps]


def _described(library: Any, module: int, at: int) -> dict[str, Any]:
    """Describe a map: its name, its number here, and the C types of its keys and values."""
    name = library.bpf_table_name(module, at)
    kinds = (library.bpf_table_key_desc(module, name), library.bpf_table_leaf_desc(module, name))
    key, leaf = (json.loads(text) if text else None for text in kinds)
    fd = library.bpf_table_fd(module, name)
    return {"name": name.decode(), "fd": fd, "key": key, "leaf": leaf}


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as given:
        serve(given)
    # Not by way of an orderly exit: to take the compiler down would take longer than to compile.
    sys.stderr.flush()
    os._exit(0)
