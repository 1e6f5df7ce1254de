"""Describe the C extension `replay.native._core` to cffi (API mode); setup.py names `ffi` here."""

from pathlib import Path

from cffi import FFI

HERE = Path("replay/native")
SOURCES = (
    "crew.c",
    "device_side.c",
    "driver_side.c",
    "exchange.c",
    "execute.c",
    "expect.c",
    "foresee.c",
    "gather.c",
    "huge.c",
    "lanes.c",
    "merge.c",
    "ownership.c",
    "paced.c",
    "pages.c",
    "rest.c",
    "ring_device.c",
    "ring_driver.c",
    "select.c",
    "sets.c",
    "siblings.c",
    "stages.c",
    "tally.c",
    "touch.c",
    "watch.c",
)
PUBLIC = ("core.h", "ring.h", "exchange.h", "plans.h")
PRIVATE = ("execute.h", "lanes.h", "marks.h", "sides.h", "stages.h")


def declarations() -> str:
    """What Python may call: the part of each public header between its two cdef lines."""
    # Setuptools runs this file by path with the project's root as working directory.
    texts = [(Path(__file__).parent / name).read_text() for name in PUBLIC]
    return "".join(text.split("/* cdef begin */")[1].split("/* cdef end */")[0] for text in texts)


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "replay.native._core",
    "".join(f'#include "{name}"\n' for name in PUBLIC),
    sources=[str(HERE / name) for name in SOURCES],
    depends=[str(HERE / name) for name in (*PUBLIC, *PRIVATE)],
    include_dirs=[str(HERE)],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
)
