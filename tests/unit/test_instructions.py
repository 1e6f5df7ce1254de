"""Which probed instructions the kernel emulates, held against a disassembler on real programs."""

import contextlib
import random
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tracer.sites.elf import Binary
from tracer.sites.instructions import cheapest_site, is_emulated

LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")
QEMU = Path("/usr/bin/qemu-system-x86_64")
LINE = re.compile(r"^\s*([0-9a-f]+):\t([0-9a-f ]+?)\s*\t(.*)$")
WINDOW_BYTES = 0x8000


def disassemble(program: Path, start: int) -> list[tuple[int, bytes, str]]:
    """Address, bytes and text of the instructions in a window of a program's code."""
    argv = ["objdump", "-d", "-w", "--insn-width=16", f"--start-address={start}"]
    done = subprocess.run(
        [*argv, f"--stop-address={start + WINDOW_BYTES}", program],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [match for line in done.stdout.splitlines() if (match := LINE.match(line))]
    return [(int(m[1], 16), bytes.fromhex(m[2]), m[3].split("#")[0].strip()) for m in found]


def kernel_emulates(code: bytes, text: str) -> bool:
    """The kernel's rules (arch/x86/kernel/uprobes.c), in the disassembler's words."""
    words = text.split()
    name = words[-1] if words[0] in {"bnd", "repz", "data16"} and len(words) < 3 else words[0]
    if words[0] == "bnd":
        name = words[1]
    operand = words[-1]
    if name == "nop":
        return code[-1] == 0x90 and 0x66 not in code
    if re.fullmatch(r"j[a-z]+", name) and name not in {"jrcxz", "jecxz"}:
        return not operand.startswith("*")
    if name == "call":
        return not operand.startswith("*") and not text.startswith("data16")
    if name == "push":
        return operand.startswith("%") and operand not in {"%fs", "%gs"}
    return False


def some_functions(program: Path, count: int) -> list[int]:
    """Starts of functions here and there, the same ones each time."""
    with contextlib.closing(Binary(program)) as binary:
        starts = [start for start, _ in binary.functions.tolist() if binary.code(start, 1)]
    return random.Random(7).sample(starts, count)


@pytest.mark.parametrize("program", [LIBC, QEMU], ids=["libc", "qemu"])
def test_every_instruction_of_real_code_is_told_as_the_kernel_does(program: Path) -> None:
    if shutil.which("objdump") is None or not program.exists():
        pytest.skip(f"needs objdump and {program}")
    seen: Counter[bool] = Counter()
    for start in some_functions(program, 6):
        for address, code, words in disassemble(program, start):
            if "(bad)" in words or words.startswith((".byte", "rex")):
                continue
            assert is_emulated(code) is kernel_emulates(code, words), f"{address:#x} {words}"
            seen[is_emulated(code)] += 1
    assert seen[True] > 1000
    assert seen[False] > 1000


@pytest.mark.parametrize(
    ("code", "emulated"),
    [
        ("7405", True),
        ("0f8400000000", True),
        ("eb00", True),
        ("e900000000", True),
        ("e800000000", True),
        ("90", True),
        ("f390", False),
        ("6690", False),
        ("55", True),
        ("4157", True),
        ("ff15aabbccdd", False),
        ("ffe0", False),
        ("66e80000", False),
        ("6650", False),
        ("4850", False),
        ("2e7400", False),
        ("f30f1efa", False),
        ("0f1f440000", False),
        ("b81c000000", False),
        ("4883ec08", False),
        ("c3", False),
        ("66", False),
        ("0f", False),
        ("", False),
    ],
)
def test_one_instruction(code: str, emulated: bool) -> None:
    assert is_emulated(bytes.fromhex(code)) is emulated


def test_libc_madvise_is_dear_at_its_entry() -> None:
    with contextlib.closing(Binary(LIBC)) as binary:
        assert not is_emulated(binary.code(binary.symbols["madvise"], 15))


def test_the_first_emulated_site_wins_else_the_first() -> None:
    dear, cheap, other = b"\xb8\0\0\0\0", b"\x74\x00", b"\xe8\0\0\0\0"
    assert cheapest_site([(1, dear), (2, cheap), (3, other)]) == (2, True)
    assert cheapest_site([(5, other), (6, cheap)]) == (5, True)
    assert cheapest_site([(1, dear), (2, b"\xc3")]) == (1, False)
