"""QEMU's static handlers, found in programs of its shape; what fits twice is refused by name."""

import contextlib
import subprocess
from pathlib import Path

import pytest

from tracer.errors import SymbolError
from tracer.sites.elf import Binary
from tracer.sites.recover import HANDLERS, find_handlers
from tracer.trace.schema import Queue

SOURCE = Path(__file__).parents[1] / "standins" / "handlers.c"
OUTPUT, REPORT, STATS, HINTS = HANDLERS


@pytest.fixture
def build(tmp_path):
    """Return a function that compiles the stand-in with macros: the program and its symbols."""
    opened = contextlib.ExitStack()

    def built(*macros, strip=True, twin=False):
        program = tmp_path / "program"
        sources = [str(SOURCE)]
        if twin:
            second = str(tmp_path / "twin.o")
            gcc = ["gcc", "-O2", "-fPIE", "-DTWIN", "-c", str(SOURCE), "-o", second]
            subprocess.run(gcc, check=True)
            sources.append(second)
        flags = ["-O2", "-fPIE", "-pie", "-rdynamic", *(f"-D{macro}" for macro in macros)]
        subprocess.run(["gcc", *flags, *sources, "-o", str(program)], check=True)
        listed = subprocess.run(["nm", str(program)], check=True, capture_output=True, text=True)
        symbols: dict[str, list[int]] = {}
        for line in listed.stdout.splitlines():
            address, _, name = line.rpartition(" ")
            if address.strip()[:-2]:
                symbols.setdefault(name, []).append(int(address.split()[0], 16))
        if strip:
            subprocess.run(["strip", str(program)], check=True)
        return opened.enter_context(contextlib.closing(Binary(program))), symbols

    with opened:
        yield built


@pytest.mark.parametrize("strip", [True, False])
def test_every_handler_is_found_where_it_is(build, strip):
    binary, symbols = build(strip=strip)
    handlers = find_handlers(binary)
    assert handlers.missing == {}
    assert [handler.name for handler in handlers.found] == list(HANDLERS)
    assert [handler.queue for handler in handlers.found] == [
        Queue.INFLATE,
        Queue.REPORTING,
        Queue.STATS,
        Queue.FREE_PAGE_HINT,
    ]
    for handler in handlers.found:
        assert [handler.function.start] == symbols[handler.name]
        assert handler.way == ("recovered" if strip else "symtab")
        assert handler.function.holds(handler.pop_site)
        assert (handler.push_site is None) == (handler.queue is Queue.STATS)


def test_the_push_beside_an_error_is_not_the_site(build):
    binary, symbols = build()
    (hints,) = (h for h in find_handlers(binary).found if h.name == HINTS)
    (error,) = binary.calls(symbols["virtio_error"][0], hints.function)
    pushes = binary.calls(symbols["virtqueue_push"][0], hints.function)
    assert len(pushes) == 2
    near = [push for push in pushes if 0 < push - error < 32]
    assert near != []
    assert hints.push_site not in near


def test_hints_are_probed_where_no_empty_queue_leads(build):
    binary, _ = build()
    (hints,) = (h for h in find_handlers(binary).found if h.name == HINTS)
    before = binary.code(hints.pop_site - 6, 6)
    assert before[:2] == b"\x0f\x84" or before[4] == 0x74, "behind the je of the test"


def test_two_fitting_functions_are_refused_and_named(build):
    binary, symbols = build("TWO_OUTPUTS")
    places = [*symbols[OUTPUT], *symbols["second_output"]]
    with pytest.raises(SymbolError, match=f"cannot find {OUTPUT}") as refused:
        find_handlers(binary)
    assert "2 functions fit" in refused.value.reason
    assert all(f"{place:#x}" in refused.value.reason for place in places)
    assert "debug symbols" in refused.value.remedy


def test_two_functions_of_the_handlers_name_are_refused_and_named(build):
    binary, symbols = build(strip=False, twin=True)
    assert len(symbols[OUTPUT]) == 2
    with pytest.raises(SymbolError) as refused:
        find_handlers(binary)
    assert all(f"{place:#x}" in refused.value.reason for place in symbols[OUTPUT])


@pytest.mark.parametrize(
    ("macro", "name", "second"),
    [("TWO_REPORTS", REPORT, "second_report"), ("TWO_STATS", STATS, "second_stats")],
)
def test_an_ambiguous_further_handler_costs_only_its_own_queue(build, macro, name, second):
    binary, symbols = build(macro)
    handlers = find_handlers(binary)
    assert {h.name for h in handlers.found} == set(HANDLERS) - {name}
    assert set(handlers.missing) == {name}
    for place in (*symbols[name], *symbols[second]):
        assert f"{place:#x}" in handlers.missing[name]


@pytest.mark.parametrize(("macro", "name"), [("NO_REPORTS", REPORT), ("NO_HINTS", HINTS)])
def test_a_qemu_without_a_queue_says_so(build, macro, name):
    handlers = find_handlers(build(macro)[0])
    assert "no function fits" in handlers.missing[name]
    assert len(handlers.found) == 3


def test_a_handler_that_returns_its_element_in_two_places_is_not_probed(build):
    handlers = find_handlers(build("TWO_PUSHES")[0])
    assert "virtqueue_push 2 times" in handlers.missing[REPORT]


def test_a_program_without_a_balloon_is_refused():
    program = contextlib.closing(Binary(Path("/usr/bin/env")))
    with program as binary, pytest.raises(SymbolError, match=f"cannot find {OUTPUT}"):
        find_handlers(binary)
