"""Describe the C extension `tracer.engine._drain` to cffi (API mode); setup.py names `ffi` here."""

from pathlib import Path

from cffi import FFI

HERE = Path("tracer/engine")
HEADER = "drain.h"


def declarations() -> str:
    """What Python may call: the part of the header between its two cdef lines."""
    # Setuptools runs this file by path with the project's root as working directory.
    text = (Path(__file__).parent / HEADER).read_text()
    return text.split("/* cdef begin */")[1].split("/* cdef end */")[0]


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "tracer.engine._drain",
    f'#include "{HEADER}"\n',
    sources=[str(HERE / "drain.c")],
    depends=[str(HERE / HEADER)],
    include_dirs=[str(HERE)],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
)
