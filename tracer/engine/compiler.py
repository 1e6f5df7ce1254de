"""Compiles a BPF source with BCC, in a process of its own (see compile_process.py).

The only module that imports BCC: its LLVM and clang take 80 MiB of every process that maps them,
and a recorder stays for days. This process lasts as long as the compiler works. BCC makes the maps
as it compiles; they end with this process, which tells what they are like, so that the recorder
makes its own. Instructions name maps by the numbers that BCC's have here.
"""

from __future__ import annotations

import base64
import ctypes
import dataclasses
import json
import os
import sys
from typing import Any

from tracer.engine.map_creation import shape_of
from tracer.errors import BccError

_INSTALL_BCC = (
    "apt-get install python3-bpfcc, and make the environment with "
    "/usr/bin/python3 -m venv --system-site-packages"
)


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


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Compile one source.

    Args:
        job: `text`, `flags` of the compiler, and `headers`, a directory in the place of kernel
            headers.

    Returns:
        `functions`, instructions in base64, and `maps`; or `error`, the parts of a BccError; or
        `failed`, where descriptor 2 was told why.
    """
    try:
        return _compiled(job)
    except BccError as error:
        return {"error": {"what": error.what, "reason": error.reason, "remedy": error.remedy}}


def _compiled(job: dict[str, Any]) -> dict[str, Any]:
    bcc = import_bcc()
    # BCC looks for kernel headers here; ours are enough, so none need be installed.
    os.environ["BCC_KERNEL_SOURCE"] = job["headers"]
    try:
        program = bcc.BPF(text=job["text"].encode(), cflags=job["flags"])
    except Exception as error:
        return {"failed": str(error)}
    calls, module = bcc.libbcc.lib, program.module
    # These two are in the library (bcc/bpf_module.h, since 0.1), and BCC's Python declares neither.
    calls.bpf_num_tables.argtypes = (ctypes.c_void_p,)
    calls.bpf_table_name.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    calls.bpf_table_name.restype = ctypes.c_char_p
    functions = {}
    for at in range(calls.bpf_num_functions(module)):
        name = calls.bpf_function_name(module, at)
        functions[name.decode()] = base64.b64encode(program.dump_func(name)).decode()
    maps = [_described(calls, module, at) for at in range(calls.bpf_num_tables(module))]
    return {"functions": functions, "maps": maps}


def _described(calls: Any, module: int, at: int) -> dict[str, Any]:
    """Describe a map: its name, its number here, its shape, and the C types in it."""
    name = calls.bpf_table_name(module, at)
    kinds = (calls.bpf_table_key_desc(module, name), calls.bpf_table_leaf_desc(module, name))
    key, leaf = (json.loads(text) if text else None for text in kinds)
    number = calls.bpf_table_fd(module, name)
    shape = dataclasses.asdict(shape_of(number))
    return {"name": name.decode(), "number": number, "shape": shape, "key": key, "leaf": leaf}


def main() -> None:
    """Take a job from standard input, put the answer on standard output, both JSON, and end."""
    # What clang and BCC print is words for an error, wherever they print it.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(answer(json.load(sys.stdin)), out)
    out.flush()
    sys.stderr.flush()
    # Not by way of an orderly exit: to take the compiler down would take longer than to compile.
    os._exit(0)


if __name__ == "__main__":
    main()
