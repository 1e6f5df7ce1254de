"""The live view drawn for terminals of every size, and as lines of JSON."""

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from aerostat.cli import main
from aerostat.top_outputs import Lines, Tables
from aerostat.top_tables import view
from aerostat.watched import Gone, Readings, Update, document
from tests.unit.test_cli_traces import documented_keys, keys_of
from tests.unit.vm_stats import AFTER, BEFORE, GIB, S
from tracer.record.live import VmStats
from tracer.trace.errors import ExitCode
from tracer.trace.schema import Queue

QUIET = replace(
    BEFORE, name="db", pid=78, uuid=None, pages={}, requests={}, runs=0, lost={}, busy_ns=0
)


def readings(*pairs: tuple[VmStats, VmStats], gone: Gone | None = None) -> Update:
    taken = Readings()
    taken.take(before for before, _ in pairs)
    if gone is not None:
        taken.leave(gone)
    return taken.take(after for _, after in pairs)


def drawn(update: Update, width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(view(update, width, height))
    return capture.get().splitlines()


def busy_and_quiet() -> Update:
    return readings((QUIET, replace(QUIET, ts_ns=102 * S)), (BEFORE, AFTER))


FIGURES = ("web-1", "inflating", "8G", "5G", "2G", "128k", "501M", "60%", "40%", "20%")
MORE_FIGURES = ("85.5", "1.90 ms", "50", "3%", "5%")


@pytest.mark.parametrize("width", [78, 80, 100, 132, 160, 250])
def test_every_figure_is_drawn_whole_at_every_usual_width(width: int) -> None:
    lines = drawn(busy_and_quiet(), width)
    assert max(map(len, lines)) <= width
    cells = {word for line in lines for word in re.split(r"\s{2,}", line.strip())}
    assert set(FIGURES) | set(MORE_FIGURES) <= cells
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", [20, 40, 60, 70])
def test_a_narrow_terminal_goes_without_columns_and_not_without_rows(width: int) -> None:
    lines = drawn(busy_and_quiet(), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    if width >= 60:
        for word in ("web-1", "db", "inflating", "128k", "60%", "3%"):
            assert word in text


def test_columns_that_do_not_fit_are_named_and_names_keep_what_room_is_left() -> None:
    lines = drawn(busy_and_quiet(), 60)
    told = "Not drawn in 60 columns: memory, discard bytes/s, longest, of busy."
    assert told in " ".join(" ".join(lines).split())
    long = readings((replace(BEFORE, name="n" * 30), replace(AFTER, name="n" * 30)))
    assert any("n" * 7 + "…" in line for line in drawn(long, 60))
    assert any("n" * 23 + "…" in line for line in drawn(long, 100))
    assert not any(line.startswith("Not drawn") for line in drawn(busy_and_quiet(), 160))


def test_one_table_where_there_is_room_for_it_and_else_two() -> None:
    headings = [sum("VM" in line for line in drawn(busy_and_quiet(), width)) for width in (80, 160)]
    assert headings == [2, 1]


def test_the_busiest_vm_comes_first() -> None:
    assert [vm.now.name for vm in busy_and_quiet().vms] == ["web-1", "db"]


def test_what_was_not_observed_is_a_dash() -> None:
    alone = {"queues": frozenset(), "pages": {}, "requests": {}, "runs": 0, "busy_ns": 0}
    alone |= {"memory_bytes": None, "actual_bytes": None, "target_bytes": None}
    update = readings((replace(BEFORE, **alone), replace(AFTER, **alone)))
    row = next(line for line in drawn(update, 160) if "web-1" in line)
    assert row.split() == [
        *("web-1", "discarding", "-", "-", "-", "-", "-", "501M", "-", "-", "20%"),
        *("-", "-", "50", "3%", "-"),
    ]


def test_a_vm_that_was_just_taken_up_has_sizes_and_no_rates() -> None:
    update = Readings().take([BEFORE])
    assert update.number == 0
    row = next(line for line in drawn(update, 160) if "web-1" in line)
    assert row.split()[:7] == ["web-1", "new", "8G", "6G", "2G", "-", "-"]


def test_a_queue_that_never_moved_takes_no_room() -> None:
    assert "report" in "\n".join(drawn(busy_and_quiet(), 160))
    still = readings((QUIET, replace(QUIET, ts_ns=102 * S)))
    assert "report" not in "\n".join(drawn(still, 160))
    assert "hint" not in "\n".join(drawn(busy_and_quiet(), 160))


@pytest.mark.parametrize("height", [5, 10, 22, 38])
@pytest.mark.parametrize("width", [80, 160])
def test_many_vms_are_cut_to_the_height_and_the_rest_is_counted(width: int, height: int) -> None:
    vms = [replace(QUIET, name=f"vm-{i}", pid=i) for i in range(200)]
    update = readings(*((vm, replace(vm, ts_ns=102 * S)) for vm in vms))
    lines = drawn(update, width, height)
    tables = 2 if width == 80 else 1
    drawn_vms = sum(line.strip().startswith("vm-") for line in lines) // tables
    assert any(f"{200 - drawn_vms} more VMs" in line for line in lines)
    if height > 10:
        assert len(lines) <= height
        assert drawn_vms >= (height - 14) // tables


def test_losses_are_told_by_cause_and_vms_that_are_gone_with_their_reason() -> None:
    gone = Gone("old\x1b[2J", 5, "vm-exited")
    text = "\n".join(drawn(readings((BEFORE, AFTER), gone=gone), 100))
    assert "lost of web-1: 180 (ring), 20 (quota)" in text
    assert "gone: old\\x1b[2J (pid 5): vm-exited" in text
    assert "\x1b" not in text


def test_a_hostile_name_neither_drives_the_terminal_nor_widens_the_table() -> None:
    name = "[red]\x1b[2J\n" + "x" * 5000
    lines = drawn(readings((replace(BEFORE, name=name), replace(AFTER, name=name))), 80)
    assert max(map(len, lines)) <= 80
    assert len(lines) < 20
    assert "\x1b" not in "".join(lines)


def test_a_vm_that_was_suspended_begins_anew() -> None:
    taken = Readings()
    taken.take([BEFORE])
    taken.forget(77)
    assert taken.take([AFTER]).vms[0].moving is None


def test_every_key_of_the_json_is_documented_and_readings_are_lines(capsys) -> None:
    update = readings((BEFORE, AFTER), gone=Gone("old", 5, "vm-exited"))
    lines = Lines()
    lines.update(Readings().take([BEFORE]))
    lines.update(update)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found == document(update)
    vm = found["vms"][0]
    assert vm["rates"]["pages_per_s"] == {"inflate": 128_000, "deflate": 0, "reporting": 256}
    assert (vm["balloon_bytes"], vm["longest_ns"]) == (3 * GIB, 1_900_000)
    assert vm["since_attach"]["pages"] == {"inflate": 257_000, "reporting": 512}
    queues = {queue.name.lower() for queue in Queue}
    assert keys_of(found) - queues - set(AFTER.lost) <= documented_keys("top")


def test_away_from_a_terminal_tables_follow_each_other_without_escape_codes(capsys) -> None:
    tables = Tables("detail discards, every 1 s")
    tables.update(Readings().take([BEFORE]))
    assert capsys.readouterr().out == ""
    tables.update(busy_and_quiet())
    tables.update(busy_and_quiet())
    out = capsys.readouterr().out
    assert out.count("2 VMs, detail discards, every 1 s") == 2
    assert out.count("web-1  ") == 2
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--interval", "99ms"], "at least 100ms"),
        (["--count", "0"], "--count"),
        (["--pid", "1", "--all"], "give one of"),
        (["--detail", "calls"], "--detail"),
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, told, capsys) -> None:
    assert main(["top", *arguments]) == ExitCode.USAGE
    assert told in capsys.readouterr().err
