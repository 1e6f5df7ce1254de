"""Memory budgets: what the machine leaves, and the longest part of a trace that fits."""

from pathlib import Path

import numpy as np
import pytest

from replay.budget import (
    Demand,
    available_bytes,
    fit,
    huge_pool_bytes,
    named_pages,
    needed_bytes,
    require_account,
    within,
)
from replay.layout import Layout
from replay.ranges import Runs, empty
from replay.requests import from_pfns
from replay.residency import Residency
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Region
from tracer.trace.schema import Queue

LAYOUT = Layout([Region("ram", 0, 0, 64 << 20, "anon", 4096)])
REQUESTS = from_pfns(
    [(Queue.STATS, [])]
    + [(Queue.INFLATE, list(range(at * 1000, at * 1000 + 200))) for at in range(10)]
)


def runs(*pairs: tuple[int, int]) -> Runs:
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return Runs(columns[:, 0].copy(), columns[:, 1].copy())


ALL = Residency(runs((0, 16384)), empty(), "all")


def test_what_fits_is_left_alone() -> None:
    fitted = fit(REQUESTS, ALL, LAYOUT, needed_bytes(REQUESTS, ALL, LAYOUT))
    assert fitted.requests is REQUESTS
    assert fitted.residency is ALL
    assert fitted.reason == ""


def test_pages_that_no_request_names_are_dropped_first() -> None:
    fitted = fit(REQUESTS, ALL, LAYOUT, needed_bytes(REQUESTS, ALL, LAYOUT) - 1)
    assert len(fitted.requests) == 11
    assert fitted.residency.resident_pages == 2000
    assert fitted.residency.source == "all"
    assert fitted.reason == (
        "the trace needs 64.2 MiB of memory, 64.2 MiB may be used: all requests are replayed,"
        " but pages that none of them names stay untouched"
    )


@pytest.mark.parametrize("kept", [1, 3, 9])
def test_then_the_longest_prefix(kept: int) -> None:
    budget = needed_bytes(REQUESTS, Residency(runs((0, 200 * kept)), empty(), ""), LAYOUT)
    for allowed in (budget, budget + 199 * 4096):
        fitted = fit(REQUESTS, ALL, LAYOUT, allowed)
        assert len(fitted.requests) == kept + 1
        assert fitted.residency.source == "all"
        assert f"{kept + 1} of 11 requests are replayed" in fitted.reason
        assert needed_bytes(fitted.requests, fitted.residency, LAYOUT) <= allowed


def test_huge_pages_stay_whole() -> None:
    huge = Residency(empty(), runs((0, 16384)), "huge")
    fitted = fit(REQUESTS, huge, LAYOUT, 2 * (512 << 12) + 100_000)
    assert fitted.residency.huge.pages.tolist() == [512]
    assert len(fitted.requests) == 2


def test_a_limit_of_nothing_is_a_limit() -> None:
    assert within(100, None) == 100
    assert within(100, 7) == 7
    assert within(100, 200) == 100
    assert within(100, 0) == 0
    with pytest.raises(AerostatError, match="not enough memory"):
        require_account(LAYOUT, 0)


def test_nothing_fits() -> None:
    with pytest.raises(AerostatError, match="not enough memory"):
        fit(REQUESTS, ALL, LAYOUT, 4096)


def test_what_a_page_takes_depends_on_the_backing_and_on_what_plans_fill() -> None:
    """3 pages in 2 host pages of 512; and 1 page that is deflated, whole host page 3."""
    requests = from_pfns([(Queue.INFLATE, [7]), (Queue.DEFLATE, [1536])])
    some = Residency(runs((0, 1), (511, 2)), empty(), "")
    none = 2 * LAYOUT.memory_pages

    def pages(demand: Demand) -> int:
        rest = needed_bytes(requests, some, LAYOUT, demand) - none
        return rest * 512 // 513 >> 12

    assert pages(Demand()) == 3
    assert pages(Demand(copies=2)) == 6
    assert pages(Demand(fills=True)) == 4
    assert pages(Demand(unit_pages=512)) == 1024
    assert pages(Demand(unit_pages=512, fills=True)) == 1536


def test_huge_pages_come_from_their_pool(tmp_path: Path) -> None:
    pool = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    with pytest.raises(AerostatError, match="no huge pages of 2 MiB"):
        huge_pool_bytes(tmp_path)
    pool.mkdir(parents=True)
    for name, count in (("nr", 10), ("free", 4), ("nr_overcommit", 3), ("surplus", 1)):
        (pool / f"{name}_hugepages").write_text(f"{count}\n")
    assert huge_pool_bytes(tmp_path) == 6 << 21
    (pool / "free_hugepages").write_text("0")
    (pool / "surplus_hugepages").write_text("3")
    with pytest.raises(AerostatError, match="no huge page of 2 MiB is free") as caught:
        huge_pool_bytes(tmp_path)
    assert "10 are reserved, 0 of them are free" in caught.value.reason
    assert "/proc/sys/vm/nr_hugepages" in caught.value.remedy


def test_named_pages_of_falling_runs() -> None:
    requests = from_pfns([(Queue.INFLATE, [9, 8, 7]), (Queue.DEFLATE, [8]), (Queue.STATS, [])])
    named = named_pages(requests, LAYOUT)
    assert named.start.tolist() == [7]
    assert named.pages.tolist() == [3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "proc/meminfo": "MemTotal: 4000 kB\nMemAvailable: 3000 kB\n",
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": "2048000\n",
        "sys/fs/cgroup/a/memory.current": "48000\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_tightest_limit_counts(root: Path) -> None:
    assert available_bytes(root) == 2_000_000
    (root / "sys/fs/cgroup/a/b/memory.max").write_text("5\n")
    assert available_bytes(root) == 4
    (root / "sys/fs/cgroup/a/b/memory.current").write_text("50\n")
    assert available_bytes(root) == 0


def test_without_cgroups_the_machine_counts(root: Path) -> None:
    (root / "proc/self/cgroup").unlink()
    assert available_bytes(root) == 3000 << 10


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable: many kB\n"])
def test_a_machine_that_does_not_say(root: Path, text: str) -> None:
    (root / "proc/meminfo").write_text(text)
    with pytest.raises(AerostatError, match="cannot tell"):
        available_bytes(root)


def test_this_machine() -> None:
    assert available_bytes() > 0
