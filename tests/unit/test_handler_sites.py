"""Where an element leads after virtqueue_pop, read from a few bytes of machine code."""

import contextlib
import subprocess
from dataclasses import dataclass
from typing import ClassVar

import pytest

from tracer.sites.elf import Binary, Function
from tracer.sites.handler_sites import find_entry, find_sites

START = 0x1000
TEST = bytes.fromhex("4885c0")
POP, PUSH = 0x2000, 0x3000
MOV, CALL_OTHER = bytes.fromhex("8b700c"), bytes.fromhex("e800010000")
RET = b"\xc3"


@dataclass
class Code:
    """As much of a Binary as sites are looked for in."""

    text: bytes
    path: str = "qemu"
    symbols: ClassVar = {"virtqueue_pop": POP, "virtqueue_push": PUSH}

    def code(self, address: int, length_bytes: int) -> bytes:
        return self.text[address - START :][:length_bytes]

    def calls(self, target: int, inside: Function) -> list[int]:
        return [START] if target == POP else [START + len(self.text) - 6]


def sites(*parts: bytes, polls: bool = False):
    text = b"".join((b"\xe8\0\0\0\0", TEST, *parts, b"\xe8\0\0\0\0", RET))
    function = Function(START, START + len(text))
    found = find_sites(Code(text), "handler", function, pushes=True, polls=polls)
    return found.pop - START, found.pop_is_emulated


NEAR_JE, SHORT_JE = bytes.fromhex("0f8420000000"), bytes.fromhex("7420")


@pytest.mark.parametrize(("jump", "behind"), [(SHORT_JE, 10), (NEAR_JE, 14)])
def test_a_queue_that_is_polled_is_probed_where_an_element_leads(jump, behind):
    assert sites(jump, MOV, polls=True) == (behind, False)
    assert sites(jump, MOV) == (8, True)


def test_an_instruction_as_cheap_behind_the_test_is_better_for_every_queue():
    assert sites(SHORT_JE, CALL_OTHER) == (10, True)


CLEARS = bytes.fromhex("48c744241000000000 31db 48c744241800000000")
"""As QEMU 7.2 and 10.0 clear variables of their loop over the pages, before they jump into it."""
JUMP_ON = bytes.fromhex("eb00")


def test_an_instruction_as_cheap_some_way_behind_the_test_is_better_for_every_queue():
    assert sites(SHORT_JE, CLEARS, JUMP_ON, MOV) == (10 + len(CLEARS), True)
    assert sites(SHORT_JE, CLEARS, JUMP_ON, MOV, polls=True) == (10 + len(CLEARS), True)


@pytest.mark.parametrize(
    "known", ["45 31 ff", "31 ff", "c744240800000000", "48c784240001000000000000"]
)
def test_what_leaves_the_element_where_it_is_is_stepped_over(known):
    code = bytes.fromhex(known)
    assert sites(SHORT_JE, code, JUMP_ON) == (10 + len(code), True)


@pytest.mark.parametrize(
    "other", ["31c0", "3118", "4531", "8b700c", "48c7c000000000", "c3", "31e4"]
)
def test_what_may_change_the_element_or_is_not_known_is_not_stepped_over(other):
    assert sites(SHORT_JE, bytes.fromhex(other), JUMP_ON) == (8, True)


@pytest.mark.parametrize("place", [9, 11, 20])
def test_an_instruction_that_another_jump_leads_to_is_not_taken_for_a_cheap_one(place):
    """To the second, the third and the one that would be probed."""
    jump_at = 10 + len(CLEARS) + len(JUMP_ON) + len(MOV)
    back = bytes([0xEB, (10 + place - (jump_at + 2)) & 0xFF])
    assert sites(SHORT_JE, CLEARS, JUMP_ON, MOV, back) == (8, True)


def test_where_the_jump_is_taken_for_an_element_its_target_is_the_place():
    jne_over_ret = bytes.fromhex("7501")
    assert sites(jne_over_ret, RET, MOV, polls=True) == (11, False)


@pytest.mark.parametrize("jump_back", ["ebfb", "75fb", "e9f8ffffff", "0f85f7ffffff"])
def test_a_place_that_another_jump_leads_to_is_not_taken(jump_back):
    assert sites(SHORT_JE, MOV, bytes.fromhex(jump_back), polls=True) == (8, True)


def test_without_a_test_at_once_the_first_instruction_is_probed():
    text = bytes.fromhex("31d2 31c9 31ff 31f6 90 90 90 90 90 90 90 90 90 90 90 90")
    code = Code(b"\xe8\0\0\0\0" + text + b"\xe8\0\0\0\0" + RET)
    function = Function(START, START + len(code.text))
    found = find_sites(code, "handler", function, pushes=True, polls=True)
    assert (found.pop - START, found.pop_is_emulated) == (5, False)


ENTRIES = """
volatile long sink;
__attribute__((noipa)) void other(void) { sink++; }
void saves_a_register(long told) { other(); sink = told; }
void begins_otherwise(long told) { sink = told; }
"""


@pytest.mark.parametrize(("flag", "skipped"), [("full", 4), ("none", 0)])
def test_a_function_is_probed_behind_its_endbr64_where_that_is_cheaper(flag, skipped, tmp_path):
    source, library = tmp_path / "entries.c", tmp_path / "entries.so"
    source.write_text(ENTRIES)
    argv = ["gcc", "-O2", "-shared", "-fPIC", f"-fcf-protection={flag}", source, "-o", library]
    subprocess.run(argv, check=True)
    with contextlib.closing(Binary(library)) as binary:
        saves, otherwise = (binary.symbols[n] for n in ("saves_a_register", "begins_otherwise"))
        assert binary.code(saves, 4).hex() == "f30f1efa" or not skipped
        assert find_entry(binary, saves) == saves + skipped
        assert find_entry(binary, otherwise) == otherwise


class Entered(Code):
    def function_at(self, _: int) -> Function:
        return Function(START, START + len(self.text))


@pytest.mark.parametrize(
    ("code", "behind"),
    [
        ("f30f1efa 90 c3", 4),
        ("f30f1efa 90 ebfd", 0),  # runs again without an entry
        ("f30f1efa", 0),
        ("f30f1efb 90 c3", 0),
    ],
)
def test_only_an_instruction_that_each_entry_runs_once_stands_for_the_entry(code, behind):
    assert find_entry(Entered(bytes.fromhex(code)), START) == START + behind
