"""How a table is made to fit: headings fold first, then text, then columns go; figures never."""

import pytest

from aerostat.fit import fit, fold_headings

HEADINGS = ("<stage", "requests", "time a page", "<where it went")
CELLS = [
    ("a  allocate", "1,536", "6.42 us", "the guest's kernel, in alloc_page"),
    ("b  send", "1,536", "1.48 us", "the queue"),
]


def total(fitted) -> int:
    gap, margin = (3, 1) if fitted.is_roomy else (2, -1)
    return sum(fitted.widths) + gap * len(fitted.widths) + margin


@pytest.mark.parametrize("width", range(40, 120))
def test_no_width_is_exceeded_and_no_figure_is_cut(width: int) -> None:
    fitted = fit(HEADINGS, CELLS, width, spare=("time a page",))
    assert total(fitted) <= width
    shown = [i for i, is_shown in enumerate(fitted.shown) if is_shown]
    for i, column_width in zip(shown, fitted.widths, strict=True):
        if not HEADINGS[i].startswith("<"):
            assert column_width >= max(len(row[i]) for row in CELLS)


def test_with_room_every_column_is_as_wide_as_it_wants() -> None:
    fitted = fit(HEADINGS, CELLS, 200)
    assert fitted.widths == (11, 8, 11, 33)
    assert (fitted.is_roomy, fitted.fits) == (True, True)


def test_headings_fold_before_text_does_and_text_before_a_column_goes() -> None:
    widths = [fit(HEADINGS, CELLS, width, spare=("requests",)) for width in (68, 60, 45)]
    assert [fitted.widths[2] for fitted in widths[:2]] == [7, 7]  # "time a" over "page"
    assert widths[0].widths[3] == 33
    assert 20 <= widths[1].widths[3] < 33
    assert widths[2].left_out == ("requests",)
    assert widths[2].shown == (True, False, True, True)


def test_what_may_go_goes_from_the_end_of_the_list() -> None:
    cells = [("x" * 10, "1" * 10, "2" * 10, "3" * 10)]
    headings = ("<a", "b", "c", "d")
    assert fit(headings, cells, 40, spare=("b", "d")).left_out == ("d",)
    assert fit(headings, cells, 25, spare=("b", "d")).left_out == ("b", "d")
    assert not fit(headings, cells, 25).fits


def test_a_column_of_empty_cells_is_not_drawn() -> None:
    assert fit(("<a", "b"), [("x", ""), ("y", "")], 80).shown == (True, False)
    assert fit(("<a", "b"), [], 80).shown == (True, True)


def test_headings_end_on_the_same_line() -> None:
    folded = fold_headings(("stage", "time a page", "where it went"), (5, 7, 40))
    assert folded == ["\nstage", "time a\npage", "\nwhere it went"]


def test_names_are_folded_only_where_nothing_else_helps() -> None:
    fitted = fit(("<name", "figure"), [("a long name of words", "1" * 20)], 40)
    assert fitted.widths == (17, 20)
