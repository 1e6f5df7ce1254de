"""Comparisons as Markdown: read back with a Markdown parser, as the page that shows them would."""

import dataclasses

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from aerostat.cli import main
from aerostat.markdown import COLUMNS, LONG, of_comparison, plain
from replay.compare import Comparison, Line, Policy, compare, overall
from replay.results_file import save_results
from replay.stats import Difference, Verdict
from tracer.trace.errors import ExitCode

from .replay_results import make_results, make_strategy

STEADY = [1_000_000, 1_001_000, 1_002_000, 1_003_000, 1_004_000]
SLOW = [1_200_000, 1_201_000, 1_202_000, 1_203_000, 1_204_000]


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every table of a document, by row."""
    found: list[list[list[str]]] = []
    for token in tokens(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 3:
            shown = "".join(child.content for child in token.children or [])
            found[-1][-1].append(shown)
    return found


def line(subject: str, verdict: Verdict, decisive: bool = True) -> Line:
    found = Difference(verdict, 1000.0, 1200.0, 1.2, 1.1, 1.3, 0.01, 0.02, "+20 %")
    return Line(subject, "discard_ns", decisive, found)


def comparison(*lines: Line, warnings: tuple[str, ...] = ()) -> Comparison:
    return Comparison(overall(lines), lines, warnings)


def test_the_verdict_comes_first_with_its_reasons() -> None:
    base = make_results(make_strategy("qemu", STEADY), make_strategy("range", STEADY))
    slow = make_results(make_strategy("qemu", STEADY), make_strategy("range", SLOW))
    text = of_comparison(compare(base, slow), "before.json", "after.json")
    head = text.splitlines()[0]
    assert head.startswith("### ")
    assert "worse" in head
    assert "exit code 3" in text
    reasons = [each for each in text.splitlines() if each.startswith("- `range`")]
    assert any("discard" in each and "+20.0%" in each for each in reasons)
    assert text.endswith("\n")


def test_every_line_is_a_row_of_a_table_with_every_column() -> None:
    results = make_results(make_strategy("qemu", STEADY))
    found = compare(results, results)
    deciding, beside = tables(of_comparison(found, "a", "b"))
    assert deciding[0] == beside[0] == list(COLUMNS)
    assert len(deciding) - 1 == sum(each.decisive for each in found.lines)
    assert len(beside) - 1 == sum(not each.decisive for each in found.lines)
    assert {len(row) for row in (*deciding, *beside)} == {len(COLUMNS)}
    assert "touch_ns" in [row[1] for row in beside]
    assert "worst_pause_ns" in [row[1] for row in beside]


@pytest.mark.parametrize(("rows", "folds"), [(LONG, 0), (LONG + 1, 1)])
def test_a_long_table_is_folded_and_still_a_table(rows: int, folds: int) -> None:
    found = comparison(*(line(f"s{i}", Verdict.WORSE) for i in range(rows)))
    text = of_comparison(found, "a", "b")
    assert text.count("<details>") == text.count("</details>") == folds
    (only,) = tables(text)
    assert len(only) == rows + 1
    assert ("and 1 more" in text) == bool(folds)


HOSTILE = (
    "x | y `z` <img src=a> [a](http://b) **c** @who #1 \n"
    "| - | ![d](e) \x1b[31m </details> &amp; ~~s~~"
)


def test_a_hostile_name_makes_nothing_of_its_own() -> None:
    bad = comparison(line(HOSTILE, Verdict.WORSE), warnings=(HOSTILE,))
    text = of_comparison(bad, HOSTILE, HOSTILE)
    (only,) = tables(text)
    assert [len(row) for row in only] == [len(COLUMNS)] * 2
    kinds = {child.type for token in tokens(text) for child in token.children or []}
    assert kinds <= {
        "text",
        "text_special",
        "code_inline",
        "strong_open",
        "strong_close",
        "softbreak",
    }
    assert "html_block" not in {token.type for token in tokens(text)}
    assert "\x1b" not in text
    outside = "".join(
        child.content
        for token in tokens(text)
        for child in token.children or []
        if child.type != "code_inline"
    )
    assert "who" in outside
    assert "@who" not in outside
    assert "#1" not in outside
    assert "http\\://" in text.split("Warning")[1]


@pytest.mark.parametrize("text", ["a", "a|b", "`a`", "a ``` b", "deferred:hold_bytes=16", "", "``"])
def test_a_name_is_code_that_holds_just_it(text: str) -> None:
    row = Line(text, "b", True, line("", Verdict.SAME).difference)
    (only,) = tables(of_comparison(comparison(row), "x", "y"))
    assert only[1][0].strip() == text


@pytest.mark.parametrize(
    "text", ["a_b", "1 < 2", "p = 0.5", "hold_bytes=16", "-5.0%", "1. a", "+1"]
)
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    (paragraph,) = [token for token in tokens(f"x {plain(text)}") if token.type == "inline"]
    assert "".join(child.content for child in paragraph.children) == f"x {text}"


def test_what_was_not_observed_is_a_dash() -> None:
    nothing = Difference(
        Verdict.INCONCLUSIVE, None, 5.0, None, None, None, None, None, "no samples"
    )
    (only,) = tables(of_comparison(comparison(Line("a", "b_ns", True, nothing)), "x", "y"))
    assert only[1][3:] == ["-", "5 ns", "-", "-", "-"]


@pytest.mark.parametrize(
    ("times", "code", "said"),
    [
        (STEADY, ExitCode.OK, "same"),
        (SLOW, ExitCode.REGRESSION, "worse"),
        ([1_000_000, 1_900_000, 1_100_000, 1_600_000, 800_000], ExitCode.INCONCLUSIVE, "inconcl"),
    ],
)
def test_the_command_writes_nothing_else(tmp_path, capsys, times, code, said) -> None:
    for name, samples in (("base.json", STEADY), ("cand.json", times)):
        save_results(make_results(make_strategy("qemu", samples)), tmp_path / name)
    paths = [str(tmp_path / name) for name in ("base.json", "cand.json")]
    assert main(["compare", *paths, "--markdown"]) == code
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("### ")
    assert said in out.splitlines()[0]
    assert "cand.json against base.json" in "".join(
        child.content for token in tokens(out)[:3] for child in token.children or []
    )


def test_json_and_markdown_together_are_refused(tmp_path, capsys) -> None:
    path = tmp_path / "r.json"
    save_results(make_results(make_strategy("qemu", STEADY)), path)
    assert main(["compare", str(path), str(path), "--json", "--markdown"]) == ExitCode.USAGE
    assert "one document" in capsys.readouterr().err


def test_a_policy_may_let_pauses_decide() -> None:
    base = make_results(make_strategy("qemu", STEADY))
    watched = tuple(
        dataclasses.replace(run, pauses=dataclasses.replace(run.pauses, max_ns=900))
        for run in base.strategies[0].watched
    )
    slow = dataclasses.replace(base.strategies[0], watched=watched)
    other = dataclasses.replace(base, strategies=(slow,))
    assert compare(base, other).verdict is Verdict.SAME
    policy = Policy(decisive=("worst_pause_ns",))
    found = compare(base, other, policy)
    assert found.verdict is Verdict.WORSE
    assert found.exit_code is ExitCode.REGRESSION
