"""Whole replays of small traces in real worker processes."""

import os

import pytest

from replay import native, prepare
from replay.budget import huge_pool_bytes
from replay.results_file import ResultsError, load_results
from replay.schedule import ReplayOptions, replay_trace
from replay.strategies import STRATEGIES
from tracer.trace.errors import AerostatError, CaptureIncompleteError

INFLATED, DEFLATED = 2048, 512
FAST = {"runs": 1, "warmup": 0, "watched_runs": 0, "strategies": ("qemu", "range")}


def by_name(results):
    return {strategy.name: strategy for strategy in results.strategies}


def test_replay_measures_every_stage_and_finds_the_recorded_operations(make_trace, tmp_path):
    phases = []
    results = replay_trace(
        ReplayOptions(make_trace(), output=tmp_path / "r.json", runs=2, warmup=1),
        lambda phase, done=0, total=None: phases.append((phase, done, total)),
    )
    found = by_name(results)
    assert set(found) == {"nop", "qemu", "adjacent", "request", "range", "oracle"}
    assert found["qemu"].operations == INFLATED + DEFLATED
    assert results.fidelity.exact is True
    assert results.fidelity.captured_operations == INFLATED + DEFLATED
    assert results.fidelity.captured_discard_ns == (INFLATED + DEFLATED) * 1000
    assert results.fidelity.ratio == pytest.approx(
        results.fidelity.replayed_discard_ns / results.fidelity.captured_discard_ns
    )
    for name, strategy in found.items():
        assert len(strategy.runs) == 2
        assert len(strategy.warmups) == 1
        assert strategy.rejected_entries == 0
        assert all(run.send_ns > 0 and run.translate_ns > 0 for run in strategy.runs)
        gone = 0 if name == "nop" else INFLATED
        assert {run.gone_pages for run in strategy.runs} == {gone}
        assert {run.freed_pages for run in strategy.runs} == {gone}
        assert all(run.calls == strategy.operations for run in strategy.runs)
        assert len(strategy.watched) == (0 if name == "nop" else 1)
    counted = [run.order for s in found.values() for run in (*s.warmups, *s.runs)]
    assert sorted(counted) == list(range(18))
    assert sorted(run.order for s in found.values() for run in s.watched) == list(range(18, 23))
    assert phases[-1] == ("replay", 23, 23)
    assert load_results(tmp_path / "r.json") == results


def test_wire_content_agrees_with_the_plan(make_trace):
    found = by_name(replay_trace(ReplayOptions(make_trace(), **FAST)))
    assert found["qemu"].translated_entries == INFLATED + DEFLATED
    assert found["qemu"].wire_requests == (INFLATED + DEFLATED) // 256
    assert found["range"].translated_entries == found["range"].operations
    assert found["range"].wire_requests == 2
    for strategy in found.values():
        (run,) = strategy.runs
        # One request in flight; a side that is still looking for more is spared its notification.
        assert 0 < run.ring.kicks <= strategy.wire_requests
        assert 0 < run.ring.interrupts <= strategy.wire_requests
    assert found["qemu"].runs[0].ring.bytes == (INFLATED + DEFLATED) // 256 * (16 + 1024)
    # Header and words, and the table that holds their descriptors.
    sent = found["range"]
    assert sent.runs[0].ring.bytes == sent.wire_bytes + 2 * 3 * 16


def test_memfd_is_holed(make_trace):
    results = replay_trace(ReplayOptions(make_trace(), backing="memfd", **FAST))
    range_runs = by_name(results)["range"].runs
    assert [run.freed_pages for run in range_runs] == [INFLATED]
    assert results.fidelity.ratio is None
    assert "memfd" in results.fidelity.note
    assert results.settings.thp == ""


@pytest.mark.parametrize("backing", ["anon", "memfd", "shmem", "file-private"])
def test_every_strategy_is_replayed_on_every_backing_or_refused_with_a_sentence(
    make_trace, backing
):
    options = ReplayOptions(make_trace(), ("all",), runs=1, warmup=0, backing=backing)
    results = replay_trace(options)
    refused = {each.name for each in results.refused}
    assert (
        refused
        == {
            "anon": {"punch"},
            "memfd": {"free", "remap"},
            "shmem": {"free", "remap"},
            "file-private": {"free", "punch"},
        }[backing]
    )
    assert all(each.reason for each in results.refused)
    assert results.settings.backing == backing
    found = by_name(results)
    assert set(found) == set(STRATEGIES) - refused
    kept = INFLATED - DEFLATED
    for name, strategy in found.items():
        (run,) = strategy.runs
        assert (run.calls, run.failures) == (strategy.calls, 0), name
        assert run.still_resident_pages == 0, name
        if name == "free":
            assert (run.lazy_pages, run.freed_pages) == (INFLATED, 0)
        elif name == "populate":
            assert run.freed_pages == kept
        elif name != "nop":
            assert kept <= run.freed_pages <= INFLATED, name
    assert found["vectored"].calls < found["vectored"].operations
    assert found["parallel"].threads == 2


def test_huge_pages_of_hugetlb_are_replayed_from_the_pool(make_trace, huge_page_pool):
    names = ("qemu", "request", "huge", "punch", "vectored", "populate")
    options = ReplayOptions(make_trace(), names, runs=1, warmup=0, backing="hugetlb")
    found = by_name(replay_trace(options))
    assert found["qemu"].runs[0].freed_pages == 0, "no request of Linux fills a huge page"
    for name in ("request", "huge", "punch", "vectored"):
        assert found[name].runs[0].freed_pages >= 512, name
        assert found[name].runs[0].freed_pages % 512 == 0


def test_memory_is_mapped_as_in_the_trace(make_trace):
    results = replay_trace(ReplayOptions(make_trace(backing="shmem"), **FAST))
    assert results.settings.backing == "shmem"
    assert results.fidelity.ratio is not None
    assert [s.runs[0].freed_pages for s in results.strategies[1:]] == [INFLATED, INFLATED]


def test_host_pages_that_are_not_mapped_here_are_refused(make_trace):
    path = make_trace(backing="hugetlb", page_bytes=1 << 30)
    with pytest.raises(AerostatError, match="1073741824 bytes a host page") as caught:
        replay_trace(ReplayOptions(path, **FAST))
    assert "--backing hugetlb" in caught.value.remedy


def test_without_huge_pages_hugetlb_is_refused_before_any_run(make_trace, monkeypatch, tmp_path):
    pool = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    pool.mkdir(parents=True)
    for name in ("nr", "free", "nr_overcommit", "surplus"):
        (pool / f"{name}_hugepages").write_text("0")
    monkeypatch.setattr(prepare, "huge_pool_bytes", lambda: huge_pool_bytes(tmp_path))
    with pytest.raises(AerostatError, match="no huge page of 2 MiB is free") as caught:
        replay_trace(ReplayOptions(make_trace(), backing="hugetlb", **FAST))
    assert "/proc/sys/vm/nr_hugepages" in caught.value.remedy


def test_a_kernel_that_is_too_old_for_a_strategy_is_named_and_nothing_is_timed(
    make_trace, monkeypatch
):
    """No such kernel runs here: the answer of one is put in the place of this one's."""
    monkeypatch.setattr(
        native, "lacking", lambda advice, vector=False: "EINVAL" if vector else None
    )
    options = ReplayOptions(make_trace(), ("qemu", "vectored"), runs=1, warmup=0)
    results = replay_trace(options)
    assert set(by_name(results)) == {"nop", "qemu"}
    (refused,) = results.refused
    assert refused.name == "vectored"
    assert "Linux 6.13 and later" in refused.reason


def test_threads_run_on_cpus_of_their_own_and_their_time_is_counted(make_trace):
    strategy = "parallel:threads=2,border_bytes=4096"
    cpu = min(os.sched_getaffinity(0))
    options = ReplayOptions(make_trace(), (strategy,), runs=1, warmup=0, cpu=cpu, siblings=9)
    results = replay_trace(options)
    found = results.strategies[1]
    assert (found.name, found.threads) == ("parallel:border_bytes=4096", 2)
    assert found.runs[0].freed_pages == INFLATED - DEFLATED
    assert found.runs[0].discard_cpu_ns > 0
    assert any("its 2 threads and 9 siblings share" in warning for warning in results.warnings)


@pytest.mark.usefixtures("transparent_huge_pages")
@pytest.mark.parametrize(
    ("thp", "huge", "pages"),
    [
        ("never", False, 0),
        ("madvise", False, 0),
        ("always", False, 8192),
        ("never", True, 0),
        ("madvise", True, 8192),
        ("always", True, 8192),
    ],
)
def test_huge_pages_are_where_the_mode_lets_them_be(make_trace, thp, huge, pages):
    """The trace saw small pages only, or huge ones only; `always` makes huge ones of all that fit.

    The kernel may have a few less to give than the fixture was given.
    """
    results = replay_trace(ReplayOptions(make_trace(huge=huge), thp=thp, **FAST))
    assert results.settings.thp == thp
    for strategy in results.strategies:
        assert pages // 2 <= strategy.runs[0].huge_pages <= pages
        assert strategy.runs[0].resident_before_pages == 8192


def test_two_budgets_of_one_strategy_stand_side_by_side(make_trace):
    names = ("deferred", "deferred:hold_bytes=1048576")
    results = replay_trace(ReplayOptions(make_trace(), names, runs=1, warmup=0))
    assert [strategy.name for strategy in results.strategies] == ["nop", *names]


UNMAP = """
from replay.backings import Advice
from replay.strategies.base import Operations
from replay.strategies.qemu import Qemu

class Unmap(Qemu):
    name = "unmap"
    discards = False

    def operations(self, requests, context):
        inflate = super().operations(requests, context)[0]
        return [Operations((Advice.DONTNEED,), inflate.pieces)]
"""


def test_advice_that_frees_nothing_is_told(make_trace, tmp_path):
    (tmp_path / "own.py").write_text(UNMAP)
    own = f"{tmp_path}/own.py:Unmap"
    options = ReplayOptions(make_trace(), (own, "qemu"), runs=1, warmup=0, backing="memfd")
    results = replay_trace(options)
    assert by_name(results)["unmap"].runs[0].freed_pages == 0
    told = [warning for warning in results.warnings if "gave no memory back" in warning]
    assert [text.split(",")[0] for text in told] == ["unmap: its discards gave no memory back"]


SEES = """
from replay.strategies.request import Request

class Seer(Request):
    name = "seer"
    causal = False
"""


def test_a_users_own_says_whether_a_device_could_do_it(make_trace, tmp_path):
    (tmp_path / "own.py").write_text(SEES)
    own = f"{tmp_path}/own.py:Seer"
    results = replay_trace(ReplayOptions(make_trace(), (own, "request"), runs=1, warmup=0))
    found = {strategy.name: strategy.deployable for strategy in results.strategies}
    assert found == {"nop": False, "seer": False, "request": True}


def test_extra_calls_in_the_trace_are_seen(make_trace):
    fidelity = replay_trace(ReplayOptions(make_trace(extra_calls=1), **FAST)).fidelity
    assert fidelity.exact is False
    assert fidelity.captured_operations == fidelity.planned_operations + 1


def test_too_little_memory_replays_a_prefix_and_says_so(make_trace):
    limit_bytes = 4 << 20
    results = replay_trace(ReplayOptions(make_trace(), memory_limit_bytes=limit_bytes, **FAST))
    assert results.settings.residency == "as recorded in the trace"
    qemu = by_name(results)["qemu"]
    assert 0 < results.settings.requests_replayed < results.trace.requests
    assert qemu.operations == results.settings.requests_replayed * 256
    assert results.settings.resident_bytes <= limit_bytes
    assert qemu.runs[0].resident_before_pages << 12 == results.settings.resident_bytes
    assert results.settings.cut_reason
    assert results.warnings[0].startswith(results.settings.cut_reason)
    assert results.fidelity.exact is True, "counted over the whole trace"
    assert results.fidelity.ratio is None


def test_no_memory_at_all(make_trace):
    with pytest.raises(AerostatError, match="not enough memory"):
        replay_trace(ReplayOptions(make_trace(), memory_limit_bytes=4096, **FAST))


@pytest.mark.parametrize(
    ("residency", "pages"),
    [
        ("touched", 16384),
        ("untouched", 0),
        ("trace", 8192),
        ("1/1", 16384),
        ("1/8", 2048),
        ("1/3", 5462),
        ("huge", 16384),
    ],
)
def test_residency_is_restored(make_trace, residency, pages):
    results = replay_trace(ReplayOptions(make_trace(), residency=residency, **FAST))
    for strategy in results.strategies:
        assert strategy.runs[0].resident_before_pages == pages


def test_a_trace_with_loss_needs_a_word(make_trace):
    path = make_trace(lost=3)
    with pytest.raises(CaptureIncompleteError, match="not whole"):
        replay_trace(ReplayOptions(path, **FAST))
    results = replay_trace(ReplayOptions(path, allow_loss=True, **FAST))
    assert results.trace.lost_events == 3


def test_output_is_never_replaced_unasked(make_trace, tmp_path):
    output = tmp_path / "r.json"
    output.write_text("mine")
    with pytest.raises(ResultsError, match="exists already"):
        replay_trace(ReplayOptions(make_trace(), output=output, **FAST))
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 0}, "cannot replay 0 times"),
        ({"siblings": -1}, "sibling"),
        ({"backing": "tape"}, "cannot be replayed"),
        ({"backing": "memfd", "strategies": ("free", "remap")}, "no strategy that was asked for"),
        ({"backing": "memfd", "thp": "always"}, "--thp always has no effect on memfd memory"),
        ({"cpu": 4000}, "CPU 4000"),
        ({"strategies": ("fast",)}, "no strategy 'fast'"),
    ],
)
def test_impossible_options(make_trace, change, message):
    with pytest.raises(AerostatError, match=message):
        replay_trace(ReplayOptions(make_trace(), **(FAST | change)))
