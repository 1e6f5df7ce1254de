"""The plan and the memory that it is made for."""

import numpy as np
import pytest

from replay.backings import Advice
from replay.layout import MAX_MEMORY_BYTES, SLOT_PAGES, Layout
from replay.plan import Context, Plan, context_of, gone_pages
from replay.requests import from_pfns
from replay.strategies import STRATEGIES
from tracer.trace.errors import AerostatError
from tracer.trace.manifest import Region
from tracer.trace.schema import PAGE_BYTES, Queue

MIB = 1 << 20
GIB = 1 << 30


def region(gpa: int, size: int, hva: int | None = None, page_bytes: int = PAGE_BYTES) -> Region:
    return Region("ram", gpa, hva, size, "anon", page_bytes)


def test_regions_lie_one_after_the_other_and_never_touch():
    layout = Layout([region(4 * GIB, GIB), region(0, 3 * GIB)])
    assert layout.base_page.tolist() == [0, 3 * GIB // PAGE_BYTES + SLOT_PAGES]
    assert layout.guest_pages == 4 * GIB // PAGE_BYTES
    assert layout.memory_bytes == 4 * GIB + 2 * MIB


@pytest.mark.parametrize(
    ("found", "phase_bytes"),
    [
        (region(0, MIB), 0),
        (region(MIB, MIB), MIB),
        (region(MIB, MIB, hva=0x7F0000200000), 0),
        (region(0, MIB, hva=0x7F0000210000), 0x10000),
    ],
)
def test_a_region_keeps_its_place_within_two_mib(found, phase_bytes):
    assert Layout([found]).base_page.tolist() == [phase_bytes // PAGE_BYTES]


def test_translation_and_its_inverse():
    layout = Layout([region(0, 2 * MIB), region(16 * MIB, 2 * MIB)])
    pfns = np.array([0, 511, 512, 4096, 4607, 4608, 1 << 51])
    pages = layout.pages_of(pfns)
    assert pages.tolist() == [0, 511, -1, 1024, 1535, -1, -1]
    assert layout.pfns_of(pages[pages >= 0]).tolist() == [0, 511, 4096, 4607]


def test_clip_cuts_at_every_border_and_keeps_the_order():
    layout = Layout([region(0, 2 * MIB), region(2 * MIB, 2 * MIB), region(16 * MIB, 2 * MIB)])
    clipped = layout.clip(np.array([4600, 510, 5000, 7]), np.array([100, 1 << 51, 3, 0]))
    assert clipped.start.tolist() == [4600, 510, 512, 4096]
    assert clipped.pages.tolist() == [8, 2, 512, 512]
    assert clipped.source.tolist() == [0, 1, 1, 1]
    assert clipped.page.tolist() == layout.pages_of(clipped.start).tolist()


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [region(0, MIB)] * 2,
        [region(0, 2 * MIB), region(MIB, 2 * MIB)],
        [region(1, MIB)],
        [region(0, MIB + 1)],
        [region(0, 0)],
        [region(-MIB, MIB)],
        [region((1 << 64) - MIB, 2 * MIB)],
        [region(0, MIB, page_bytes=5000)],
        [region(0, MIB, page_bytes=1 << 31)],
        [region(0, MAX_MEMORY_BYTES + PAGE_BYTES)],
        [region(i * MIB, PAGE_BYTES) for i in range(1025)],
        [region(i * GIB, PAGE_BYTES, page_bytes=GIB) for i in range(1024)] + [region(0, GIB)],
    ],
)
def test_a_memory_map_that_no_replay_can_hold_is_refused(regions):
    with pytest.raises(AerostatError, match="memory map cannot be replayed") as caught:
        Layout(regions)
    assert caught.value.reason


@pytest.mark.parametrize(
    "settings", [{"host_page_bytes": 2048}, {"host_page_bytes": 5000}, {"backing": "tape"}]
)
def test_a_context_that_no_host_has_is_refused(settings):
    with pytest.raises(ValueError, match="is "):
        Context((region(0, MIB),), **settings)


def test_the_context_of_a_trace_is_that_of_its_largest_region():
    rom = Region("rom", 4 * GIB, None, MIB, "file-private", PAGE_BYTES)
    ram = Region("ram", 0, None, GIB, "hugetlb", GIB)
    own = context_of([rom, ram])
    assert (own.backing, own.host_page_bytes) == ("hugetlb", GIB)
    other = context_of([rom, ram], "memfd")
    assert (other.backing, other.host_page_bytes) == ("memfd", PAGE_BYTES)
    assert context_of([rom, ram], "hugetlb").host_page_bytes == 2 * MIB
    unknown = context_of([Region("ram", 0, None, GIB, "tape", 8192)])
    assert (unknown.backing, unknown.host_page_bytes) == ("anon", PAGE_BYTES)


def test_gone_pages_counts_only_what_takes_pages_away_at_once():
    context = Context((region(0, MIB),))
    advice = np.array([Advice.DONTNEED, Advice.FREE, Advice.WILLNEED], np.uint8)
    offset = np.array([0, 8, 16], np.uint64) * np.uint64(PAGE_BYTES)
    length = np.full(3, 2 * PAGE_BYTES, np.uint64)
    plan = Plan("mine", "pfns", advice, offset, length, np.zeros(3, np.int64))
    assert gone_pages(plan, context).start.tolist() == [0]
    assert gone_pages(plan, Context(context.regions, backing="memfd")).total_pages == 0


def test_the_part_of_a_plan_before_a_request():
    requests = from_pfns([(Queue.INFLATE, [1]), (Queue.STATS, []), (Queue.INFLATE, [3, 9])])
    plan = STRATEGIES["qemu"].plan(requests, Context((region(0, MIB),)))
    assert [len(plan.before(n)) for n in range(4)] == [0, 1, 1, 3]
    assert [plan.before(n).wire_bytes for n in range(4)] == [0, 4, 4, 12]
