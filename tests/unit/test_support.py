"""What a kernel lacks is found out by trying, and said in a sentence; nothing is timed then."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay import native
from replay.backings import Advice
from replay.requests import from_pfns
from replay.strategies import STRATEGIES
from replay.support import remapped_stretches, unsupported
from tests.unit.planned import IN, OUT, context
from tests.unit.test_check_calls import plan_of

REQUESTS = from_pfns([(IN, [5, 3, 9]), (OUT, [3])])


@pytest.fixture
def old_kernel(monkeypatch):
    """A kernel that has neither: no such one runs here, so its answers are put in its place."""
    tried = []

    def lacking(advice: int, *, vector: bool = False) -> str | None:
        tried.append((advice, vector))
        return "EINVAL" if vector or advice == Advice.POPULATE_WRITE else None

    monkeypatch.setattr(native, "lacking", lacking)
    return tried


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vectored", "process give itself DONTNEED through process_madvise (EINVAL); Linux 6.13"),
        ("populate", "has no MADV_POPULATE_WRITE (EINVAL); Linux 5.14"),
        ("request", None),
        ("free", None),
    ],
)
def test_an_old_kernel_is_said_to_be_too_old(old_kernel, name, words):
    reason = unsupported(STRATEGIES[name].plan(REQUESTS, context()))
    assert (reason is None) == (words is None)
    assert words is None or words in reason


def test_a_plan_of_single_calls_needs_no_process_madvise(old_kernel):
    plan = STRATEGIES["vectored"].plan(from_pfns([(IN, [5])]), context())
    assert unsupported(plan) is None


def test_this_kernel_is_really_asked():
    assert native.lacking(Advice.DONTNEED) is None
    assert native.lacking(77) == "EINVAL"
    assert native.lacking(77, vector=True) in {"EINVAL", "ENOSYS"}


def test_remapping_is_refused_where_mappings_would_run_out(tmp_path: Path):
    for name in ("sys/vm", "self"):
        (tmp_path / "proc" / name).mkdir(parents=True)
    (tmp_path / "proc/self/maps").write_text("a\n" * 10)
    plan = STRATEGIES["remap"].plan(from_pfns([(IN, [1, 3, 5])]), context())
    (tmp_path / "proc/sys/vm/max_map_count").write_text("16\n")
    assert unsupported(plan, tmp_path) is None
    (tmp_path / "proc/sys/vm/max_map_count").write_text("15\n")
    assert "up to 6 mappings; a process may have 15 (vm.max_map_count)" in unsupported(
        plan, tmp_path
    )


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5), st.booleans()), max_size=25))
def test_stretches_of_remapped_memory_are_counted_at_their_most(drawn):
    if not drawn:
        return
    rows = [
        (Advice.REMAP if remap else Advice.DONTNEED, page, pages, index)
        for index, (page, pages, remap) in enumerate(drawn)
    ]
    mapped: set[int] = set()
    most = 0
    for advice, page, pages, _ in rows:
        if advice == Advice.REMAP:
            mapped |= set(range(page, page + pages))
        most = max(most, len([each for each in mapped if each - 1 not in mapped]))
    assert remapped_stretches(plan_of(*rows)) == most


def test_a_plan_without_remapping_needs_no_mappings():
    assert remapped_stretches(STRATEGIES["qemu"].plan(REQUESTS, context())) == 0
    assert np.isin(Advice.REMAP, STRATEGIES["remap"].plan(REQUESTS, context()).advice)
