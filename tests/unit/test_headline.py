"""The seed's experiment before it runs: size, memory, options, the published figures."""

from pathlib import Path

import click
import pytest

from aerostat import headline
from aerostat.cli import main
from replay.headline import MEMORY_PAGES, PAGES, HeadlineOptions, context_of_pages, fitting_scale
from tracer.trace.errors import AerostatError

GIB = 1 << 30


def options(
    residency: tuple = ("untouched", "touched"), limit: int | None = None
) -> HeadlineOptions:
    return HeadlineOptions(Path("t.balloon"), residency=residency, memory_limit_bytes=limit)


def test_it_is_the_seeds_size() -> None:
    assert (PAGES << 12, MEMORY_PAGES << 12) == (7 * GIB, 8 * GIB)
    assert context_of_pages(MEMORY_PAGES).layout.memory_bytes == 8 * GIB


def test_it_is_whole_where_it_fits() -> None:
    assert fitting_scale(options(), 8 * GIB) == 1
    assert fitting_scale(options(limit=8 * GIB), 20 * GIB) == 1


def test_untouched_memory_needs_little() -> None:
    assert fitting_scale(options(("untouched",)), GIB) == 1


def test_it_is_refused_where_it_does_not_fit_and_says_how() -> None:
    with pytest.raises(AerostatError, match=r"needs 76\d\d MiB") as caught:
        fitting_scale(options(), 4 * GIB)
    _, limit, *_ = caught.value.remedy.split()
    assert caught.value.remedy == f"--memory-limit {limit} runs it at 1/2 of the size"
    assert fitting_scale(options(limit=int(limit[:-1]) << 20), 4 * GIB) == 1 / 2


@pytest.mark.parametrize(
    ("limit", "spare", "scale"),
    [(4 * GIB, 20 * GIB, 1 / 2), (2 * GIB, 20 * GIB, 1 / 4), (8 * GIB, GIB, 1 / 8)],
)
def test_a_limit_scales_it_down(limit: int, spare: int, scale: float) -> None:
    assert fitting_scale(options(limit=limit), spare) == scale


def test_too_little_for_any_part_is_refused() -> None:
    with pytest.raises(AerostatError, match="too few for any part"):
        fitting_scale(options(limit=1 << 20), 20 * GIB)
    with pytest.raises(AerostatError, match="needs") as caught:
        fitting_scale(options(), 1 << 20)
    assert "more memory" in caught.value.remedy


def test_what_was_published() -> None:
    published = headline.SEED_FIGURES
    assert published["pfns_ns"] == 4_126_000_000
    assert round(published["ranges_times"], 1) == 7.0
    assert round(published["later_times"], 1) == 9.4
    assert set(published["ranges_stages_ns"].values()) == {None}
    assert headline.without_allocation(headline.SEED_RANGES_NS) == 322_000_000


@pytest.mark.parametrize(
    "extra",
    [
        ("--thp", "always"),
        ("--backing", "memfd"),
        ("--watched-runs", "2"),
        ("-o", "x.json"),
        ("--against", "range"),
        ("--residency", "trace"),
        ("--residency", "1/8"),
        ("--residency", "huge"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(extra: tuple[str, ...], capsys) -> None:
    assert main(["replay", "--seed-headline", *extra]) == 2
    assert {"-o": "--output"}.get(extra[0], extra[0]) in capsys.readouterr().err


def test_a_trace_is_asked_for_otherwise(capsys) -> None:
    assert main(["replay"]) == 2
    assert "TRACE" in capsys.readouterr().err


def test_the_default_is_a_reference_trace(monkeypatch, tmp_path) -> None:
    assert headline.default_trace().name == "plain.balloon"
    monkeypatch.setattr(headline, "__file__", str(tmp_path / "aerostat" / "headline.py"))
    with pytest.raises(AerostatError, match="needs a trace"):
        headline.default_trace()


def test_click_has_a_word_for_each_option_that_is_taken() -> None:
    from aerostat.verbs.replay import command

    assert {parameter.name for parameter in command.params} >= headline.TAKES
    assert isinstance(command, click.Command)
