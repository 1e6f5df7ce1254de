"""Tables on stdout: nulls, hostile text, width, colour."""

import pytest

from aerostat import render
from aerostat.capture_tables import draw_ledger, draw_stages
from tracer.account.ledger import Ledger
from tracer.account.stages import SEED_NS, SEED_PERCENT, Direction, Stage, StageTable
from tracer.trace.manifest import LedgerLine, Manifest, SideInfo
from tracer.trace.schema import Queue

HOST_ONLY = Manifest(sides={"host": SideInfo(4096, 0)})


def stage(name: str, letter: str, total_ns: int | None, share: float | None) -> Stage:
    return Stage(
        name=name,
        letter=letter,
        requests=8 if total_ns is not None else 0,
        pages=2048,
        rejected=0,
        total_ns=total_ns,
        corrected_ns=None,
        median_ns=None,
        p99_ns=None,
        worst_ns=None,
        percent=share,
        seed_percent=SEED_PERCENT[letter],
        seed_ns=SEED_NS[letter],
    )


@pytest.fixture
def host_only() -> StageTable:
    """What a trace without a guest's side gives: a and b were not observed."""
    stages = (
        stage("allocate", "a", None, None),
        stage("send", "b", None, None),
        stage("translate", "c", 1_000_000, None),
        stage("discard", "d", 0, None),
    )
    return StageTable((Direction(Queue.INFLATE, 8, 2048, stages, 5_000_000, 0, None, None),), None)


def row(text: str, word: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if f" {word} " in line)


def test_not_observed_is_a_dash_and_zero_is_zero(host_only: StageTable, capsys) -> None:
    draw_stages(host_only, HOST_ONLY)
    out = capsys.readouterr().out
    assert row(out, "allocate")[2:6] == ["-", "-", "-", "-"]
    assert row(out, "translate")[2:5] == ["8", "1", "ms"]
    assert row(out, "discard")[2:5] == ["8", "0", "ns"]


def test_the_seeds_own_table_stands_beside(host_only: StageTable, capsys) -> None:
    draw_stages(host_only, HOST_ONLY)
    out = capsys.readouterr().out
    for letter, share in SEED_PERCENT.items():
        assert f"{share:.1f} %" in row_of_letter(out, letter)
    assert "4126 ms: a 6.5 % b 68.3 % c 6.1 % d 19 %" in out
    assert "590 ms" in out


def row_of_letter(text: str, letter: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(f"{letter}  "))


def test_a_still_balloon_is_said_to_be_still(capsys) -> None:
    draw_stages(StageTable((), None), HOST_ONLY)
    assert "did not move" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("balanced", "text"),
    [
        (True, "ledger: balanced"),
        (False, "ledger: NOT BALANCED"),
        (None, "ledger: nothing could be compared: system calls alone"),
    ],
)
def test_the_ledger_says_whether_it_balances(balanced: bool | None, text: str, capsys) -> None:
    line = LedgerLine(name="inflate: guest driver", pages=None, source="s", status="not observed")
    draw_ledger(Ledger((line,), balanced, "system calls alone"))
    out = capsys.readouterr().out
    assert text in out
    assert "guest driver" in out
    assert " - " in out


def test_hostile_text_cannot_drive_the_terminal(capsys) -> None:
    render.draw("title", ("<name",), [("[red]a\x1b[2Jb\rc[/red]",)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]a\\x1b[2Jb\\rc[/red]" in out


def test_a_wide_table_is_not_cut_in_a_pipe(capsys) -> None:
    render.draw("title", ("<name", "value"), [("n" * 100, "123,456,789")])
    out = capsys.readouterr().out
    assert "n" * 100 in out
    assert "123,456,789" in out


def test_no_colour_away_from_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    render.draw("title", ("<name",), [("a",)])
    render.say("text")
    assert "\x1b" not in capsys.readouterr().out
