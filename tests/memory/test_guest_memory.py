"""Discards on real mappings: what is planned goes, everything else stays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import native
from replay.backings import BACKINGS, Advice
from replay.memory import GuestMemory
from replay.native.types import CallKind, Effect, NativeError, Operations, Page, Rule, new_watch
from replay.ranges import Runs, empty
from replay.residency import Residency

PAGES = 4096
SIZE_BYTES = PAGES << 12


def runs(*pairs: tuple[int, int]) -> Runs:
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return Runs(columns[:, 0].copy(), columns[:, 1].copy())


def small(*pairs: tuple[int, int]) -> Residency:
    return Residency(runs(*pairs), empty(), "test")


def operations(advice: Advice, *pairs: tuple[int, int]) -> Operations:
    columns = np.array(pairs, np.uint64).reshape(-1, 2) << np.uint64(12)
    return Operations(
        np.full(len(pairs), advice, np.uint8),
        columns[:, 0].copy(),
        columns[:, 1].copy(),
        np.zeros(len(pairs), np.int64),
    )


@pytest.mark.parametrize(
    ("backing", "advice"),
    [
        ("anon", Advice.DONTNEED),
        ("anon", Advice.REMAP),
        ("memfd", Advice.PUNCH_HOLE),
        ("memfd", Advice.REMOVE),
        ("shmem", Advice.REMOVE),
        ("file-private", Advice.DONTNEED),
        ("file-private", Advice.REMAP),
    ],
)
def test_only_planned_pages_go(backing: str, advice: Advice) -> None:
    with GuestMemory(SIZE_BYTES, backing, seed=1) as memory:
        memory.restore(small((0, 1000), (2000, 500)))
        assert memory.resident_pages() == 1500
        outcome = memory.execute(operations(advice, (10, 1), (100, 64), (2400, 200)))
        check = memory.verify()
    assert outcome.calls == 3
    assert outcome.bytes == 265 << 12
    assert outcome.failures == 0
    assert check.gone_pages == 165
    assert check.resident_pages == 1500 - 165
    assert check.findings.stamped_checked == 1500 - 165
    assert check.findings.gone_checked == 165
    assert check.findings.wrong == check.still_resident_pages == check.appeared_pages == 0


@pytest.mark.parametrize(
    ("backing", "advice"),
    [
        ("memfd", Advice.DONTNEED),
        ("shmem", Advice.DONTNEED),
        ("file-private", Advice.PUNCH_HOLE),
    ],
)
def test_what_frees_nothing_keeps_the_data(backing: str, advice: Advice) -> None:
    with GuestMemory(SIZE_BYTES, backing, seed=1) as memory:
        memory.restore(small((0, 512)))
        outcome = memory.execute(operations(advice, (0, 512)))
        check = memory.verify()
    assert outcome.failures == 0
    assert check.resident_pages == 512
    assert check.gone_pages == 0
    assert check.findings.stamped_checked == 512
    assert check.findings.wrong == 0


def test_free_is_lazy() -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 512)))
        memory.execute(operations(Advice.FREE, (0, 256)))
        check = memory.verify()
    assert check.findings.lazy_checked == 256
    assert check.findings.stamped_checked == 256
    assert check.findings.wrong == 0


@pytest.mark.usefixtures("transparent_huge_pages")
def test_huge_pages_are_restored_and_split() -> None:
    others = np.ones(64 << 20, np.uint8)  # numpy asks for huge pages of its own
    residency = Residency(runs((0, 100)), runs((512, 1024)), "test")
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        huge_pages = memory.restore(residency)
        assert memory.resident_pages() == 1124
        memory.execute(operations(Advice.DONTNEED, (512, 1), (1024, 512)))
        check = memory.verify()
    assert huge_pages == 1024
    assert others.all()
    assert check.gone_pages == 513
    assert check.resident_pages == 1124 - 513
    assert check.findings.wrong == 0


def flags_of(memory: GuestMemory) -> list[set[str]]:
    """VmFlags of every mapping that lies in the memory (proc(5), smaps)."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first = int(head.partition("-")[0], 16)
            inside = 0 <= first - memory.mapping.base < memory.size_bytes
        elif inside and head == "VmFlags:":
            found.append(set(line.split()[1:]))
    return found


@pytest.mark.parametrize("backing", ["anon", "file-private"])
def test_memory_mapped_anew_gets_no_huge_pages_either(backing: str) -> None:
    """Else `touch` would be quick there where the machine's setting of THP is always."""
    with GuestMemory(SIZE_BYTES, backing, seed=1) as memory:
        memory.restore(small((0, 2048)))
        memory.execute(operations(Advice.REMAP, (512, 512), (1536, 128)))
        assert all("nh" in flags for flags in flags_of(memory))


def test_willneed_changes_nothing() -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 10)))
        memory.execute(operations(Advice.WILLNEED, (0, 4096)))
        check = memory.verify()
    assert check.resident_pages == 10
    assert check.findings.stamped_checked == 10
    assert check.findings.wrong == 0


@pytest.mark.parametrize(
    "bad",
    [
        (PAGES, 1),
        (0, PAGES + 1),
        (PAGES - 1, 2),
        (1, (1 << 52) - 1),
        ((1 << 52) - 1, 1),
        (5, 0),
    ],
)
def test_operation_outside_is_refused_and_none_is_carried_out(bad: tuple[int, int]) -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 100)))
        with pytest.raises(NativeError, match="operation 1 of 2 was refused"):
            memory.execute(operations(Advice.DONTNEED, (0, 50), bad))
        assert memory.verify().findings.stamped_checked == 100


def test_unaligned_operation_is_refused() -> None:
    ragged = Operations(
        *(
            np.array([value], kind)
            for value, kind in zip(
                (Advice.DONTNEED, 100, 4096, 0),
                (np.uint8, np.uint64, np.uint64, np.int64),
                strict=True,
            )
        )
    )
    with (
        GuestMemory(SIZE_BYTES, "anon", seed=1) as memory,
        pytest.raises(NativeError, match="not whole pages"),
    ):
        memory.execute(ragged)


def test_unknown_advice_and_a_hole_without_a_file_are_refused() -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        for advice in (Advice.PUNCH_HOLE, 77):
            with pytest.raises(NativeError, match="refused"):
                memory.execute(operations(advice, (0, 1)))


def test_a_failing_call_is_counted_with_its_errno() -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 8)))
        outcome = memory.execute(operations(Advice.REMOVE, (0, 4), (4, 4)))
        check = memory.verify()
    assert outcome.failures == 2
    assert outcome.first_failed == 0
    assert outcome.first_errno == 22
    assert check.findings.stamped_checked == 8


def test_verify_sees_what_must_not_be() -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 100)))
        rules = {int(Advice.DONTNEED): Rule(CallKind.MADVISE, int(Advice.DONTNEED), Effect.KEEPS)}
        native.execute(memory.mapping, operations(Advice.DONTNEED, (7, 2)), rules)
        findings = memory.verify().findings
    assert findings.wrong == 2
    assert findings.first_wrong_page == 7


def test_verify_sees_a_discard_that_did_not_happen() -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 100)))
        memory.state[3] = Page.GONE
        memory.state[5] = Page.NEVER
        check = memory.verify()
    assert check.findings.wrong == 1
    assert check.still_resident_pages == 1
    assert check.appeared_pages == 1


def test_floor_touches_nothing_and_makes_no_call() -> None:
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 100)))
        floor = memory.floor(operations(Advice.DONTNEED, (0, 100)))
        check = memory.verify()
    assert floor.calls == 0
    assert floor.bytes == 100 << 12
    assert check.findings.stamped_checked == 100


def test_every_operation_can_be_timed() -> None:
    watch = new_watch(3, 0)
    with GuestMemory(SIZE_BYTES, "anon", seed=1) as memory:
        memory.restore(small((0, 100)))
        outcome = memory.execute(operations(Advice.DONTNEED, (0, 1), (5, 1), (9, 50)), watch)
    assert (watch.per_call_ns > 0).all()
    assert watch.per_call_ns.sum() <= outcome.wall_ns
    assert watch.samples == 0


def test_populate_outside_is_refused() -> None:
    with (
        GuestMemory(SIZE_BYTES, "anon", seed=1) as memory,
        pytest.raises(NativeError, match="EINVAL"),
    ):
        memory.restore(small((PAGES - 1, 2)))


page_runs = st.lists(st.tuples(st.integers(0, 511), st.integers(1, 40)), max_size=20)


@settings(max_examples=25)
@given(
    resident=page_runs,
    discarded=page_runs,
    backing=st.sampled_from(["anon", "memfd", "shmem", "file-private"]),
)
def test_any_plan_leaves_what_the_model_says(
    resident: list[tuple[int, int]], discarded: list[tuple[int, int]], backing: str
) -> None:
    pages = 552
    expected = np.zeros(pages, bool)
    for start, count in resident:
        expected[start : start + count] = True
    before = expected.sum()
    for start, count in discarded:
        expected[start : start + count] = False
    advice = BACKINGS[backing].discard
    with GuestMemory(pages << 12, backing, seed=9) as memory:
        memory.restore(small(*resident))
        assert memory.resident_pages() == before
        memory.execute(operations(advice, *discarded))
        assert (native.residency(memory.mapping).astype(bool) == expected).all()
        assert memory.verify().findings.wrong == 0
