"""The compiler's process, and what is made of its answer, without a compiler."""

import ctypes
import struct
from pathlib import Path

import pytest

from tracer.engine import compile_process
from tracer.engine.compile_process import compile_apart
from tracer.engine.loader import with_maps
from tracer.engine.maps import c_type
from tracer.errors import BccError

EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def compiled() -> object:
    return compile_apart("some.bpf.c", "int x;", [], Path("/nowhere"))


def open_descriptors() -> set[str]:
    # The listing has a descriptor of its own while it is made.
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "it was killed by SIGKILL"),
        ("raise SystemExit('no room here')", "no room here"),
        ("raise SystemExit(3)", "exit code 3"),
        # It takes the job, and ends in the middle of its answer.
        (
            "import sys; sys.stdin.read(); print('[1, 2', flush=True); sys.exit('torn')",
            "torn",
        ),
    ],
)
def test_a_compiler_that_dies_is_one_clear_error(monkeypatch, source: str, reason: str) -> None:
    monkeypatch.setattr(compile_process, "_START", source)
    before = open_descriptors()
    with pytest.raises(BccError) as caught:
        compiled()
    assert "some.bpf.c ended without an answer" in caught.value.what
    assert caught.value.reason == reason
    assert caught.value.remedy
    assert open_descriptors() == before


def test_what_it_says_is_not_on_our_stderr(monkeypatch, capfd) -> None:
    source = "import sys; print('out', flush=True); sys.exit('err')"
    monkeypatch.setattr(compile_process, "_START", source)
    with pytest.raises(BccError, match="err"):
        compiled()
    assert capfd.readouterr() == ("", "")


def test_maps_are_named_by_our_descriptors() -> None:
    def load_map(register: int, source: int, fd: int) -> bytes:
        return struct.pack("<BBhi", 0x18, source << 4 | register, 0, fd) + bytes(8)

    number = struct.pack("<BBhi", 0x18, 1, 0, 7) + struct.pack("<BBhi", 0, 0, 0, 0x18)
    text = load_map(1, 1, 7) + number + load_map(9, 1, 200) + EXIT
    wanted = load_map(1, 1, 41) + number + load_map(9, 1, 42) + EXIT
    assert with_maps(text, {7: 41, 200: 42}) == wanted


def test_a_map_that_was_not_handed_over_is_never_guessed() -> None:
    with pytest.raises(KeyError):
        with_maps(struct.pack("<BBhi", 0x18, 1 << 4, 0, 7) + bytes(8), {8: 41})


def test_a_described_structure_lies_as_the_compiler_lays_it_out() -> None:
    inner = ["run", [["count", "unsigned int"], ["__pad_1", "char", [4]]], "struct"]
    described = [
        "record",
        [
            ["token", "unsigned long long"],
            ["value", "unsigned int", [2, 3]],
            ["run", inner, [2]],
            ["one", inner],
            ["end", "unsigned short"],
        ],
        "struct",
    ]
    made = c_type(described)
    assert (made.value.offset, made.run.offset, made.one.offset, made.end.offset) == (8, 32, 48, 56)
    assert ctypes.sizeof(made) == 64
    assert len(made().value) == 2
    assert len(made().value[0]) == 3
    packed = ["p", [["a", "unsigned char"], ["b", "unsigned int"]], "struct_packed"]
    assert ctypes.sizeof(c_type(packed)) == 5
    both = ["u", [["a", "unsigned char"], ["b", "unsigned int"]], "union"]
    assert ctypes.sizeof(c_type(both)) == 4


def test_a_bit_field_is_refused() -> None:
    with pytest.raises(ValueError, match="flag"):
        c_type(["b", [["flag", "unsigned int", 3]], "struct"])
