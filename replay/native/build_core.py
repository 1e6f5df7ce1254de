"""Describe the C extension `replay.native._core` to cffi (API mode); setup.py names `ffi` here."""

from pathlib import Path

from cffi import FFI

HERE = Path("replay/native")
SOURCES = ("crew.c", "execute.c", "pages.c", "siblings.c", "stages.c")


def declarations() -> str:
    """What Python may call: the part of core.h between its two cdef lines."""
    # Setuptools runs this file by path with the project's root as working directory.
    text = (Path(__file__).parent / "core.h").read_text()
    return text.split("/* cdef begin */")[1].split("/* cdef end */")[0]


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "replay.native._core",
    '#include "core.h"',
    sources=[str(HERE / name) for name in SOURCES],
    depends=[str(HERE / "core.h"), str(HERE / "execute.h")],
    include_dirs=[str(HERE)],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
)
