"""Any user's program may be called after a VMM: what root reads of it is bounded, or refused."""

import contextlib
import random
import resource
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.errors import SymbolError
from tracer.sites.elf import Binary
from tracer.sites.elf_bounds import odd_file
from tracer.sites.recover import find_handlers

SOURCE = Path(__file__).parents[1] / "standins" / "handlers.c"
HEADER_BYTES = 64
SIZE, KIND, FLAGS = 32, 4, 8
"""Offsets of sh_size, sh_type and sh_flags in a section's header."""
NOBITS, COMPRESSED = 8, 0x800
RUNS = 300


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> bytes:
    made = tmp_path_factory.mktemp("program") / "program"
    gcc = ["gcc", "-O2", "-fPIE", "-pie", "-rdynamic", str(SOURCE), "-o", str(made)]
    subprocess.run(gcc, check=True)
    return made.read_bytes()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let a file that asks for a lot of memory fail here as it would elsewhere."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def headers(program: bytes) -> tuple[int, int]:
    """Where the section headers begin, and how many there are."""
    (begin,) = struct.unpack_from("<Q", program, 40)
    (count,) = struct.unpack_from("<H", program, 60)
    return begin, count


def header_of(program: bytes, name: str) -> int:
    begin, count = headers(program)
    (names,) = struct.unpack_from("<H", program, 62)
    (table,) = struct.unpack_from("<Q", program, begin + names * HEADER_BYTES + 24)
    for number in range(count):
        at = begin + number * HEADER_BYTES
        start = table + struct.unpack_from("<I", program, at)[0]
        if program[start : program.index(0, start)] == name.encode():
            return at
    raise AssertionError(name)


def look_at(path: Path) -> None:
    with odd_file(path), contextlib.closing(Binary(path)) as binary:
        assert binary.symbols
        find_handlers(binary)


def test_the_program_itself_is_understood(program: bytes, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(program)
    look_at(tmp_path / "it")


@pytest.mark.usefixtures("little_memory")
def test_no_header_of_a_section_makes_another_error(program: bytes, tmp_path: Path) -> None:
    begin, count = headers(program)
    chance, path, refused = random.Random(3), tmp_path / "it", 0
    for _ in range(RUNS):
        spoiled = bytearray(program)
        for _ in range(chance.choice((1, 2, 4))):
            spoiled[begin + chance.randrange(count * HEADER_BYTES)] = chance.randrange(256)
        path.write_bytes(spoiled)
        begin_s = time.monotonic()
        try:
            look_at(path)
        except SymbolError:
            refused += 1
        assert time.monotonic() - begin_s < 10
    assert refused > RUNS // 20


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", [".text", ".eh_frame", ".eh_frame_hdr", ".dynsym"])
@pytest.mark.parametrize(
    ("at", "form", "value"),
    [(SIZE, "<Q", 1 << 40), (KIND, "<I", NOBITS), (FLAGS, "<Q", COMPRESSED)],
)
def test_a_section_that_is_no_part_of_the_file_is_refused(
    program: bytes, tmp_path: Path, name: str, at: int, form: str, value: int
) -> None:
    spoiled, path = bytearray(program), tmp_path / "it"
    struct.pack_into(form, spoiled, header_of(program, name) + at, value)
    path.write_bytes(spoiled)
    with pytest.raises(SymbolError):
        look_at(path)


def test_sections_without_end_are_refused(program: bytes, tmp_path: Path) -> None:
    spoiled, path = bytearray(program), tmp_path / "it"
    struct.pack_into("<H", spoiled, 60, 0)  # then the first section's size is their number
    struct.pack_into("<Q", spoiled, headers(program)[0] + SIZE, 1 << 50)
    path.write_bytes(spoiled)
    with pytest.raises(SymbolError, match="sections"):
        look_at(path)


def test_the_symbols_of_a_debug_file_are_found(program: bytes, tmp_path: Path) -> None:
    path, debug = tmp_path / "it", tmp_path / "it.debug"
    path.write_bytes(program)
    subprocess.run(["objcopy", "--only-keep-debug", str(path), str(debug)], check=True)
    with contextlib.closing(Binary(debug)) as binary:
        assert binary.addresses("virtio_balloon_handle_output")
