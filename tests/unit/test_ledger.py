"""Ledgers that balance, and ledgers that say where they do not."""

import pyarrow as pa
import pytest

from tests.unit.capture_bundle import (
    BACK,
    CALL_ROWS,
    DONTNEED,
    GUEST_COUNTERS,
    GUEST_ROWS,
    HOST_COUNTERS,
    HOST_ROWS,
    SECOND,
    both,
    call,
    received,
    sent,
    write_guest,
    write_host,
)
from tests.unit.ledger_lines import MIGRATED, lines
from tracer.account.ledger import ledger
from tracer.account.ledger_host import Discards, captured_discards
from tracer.trace.manifest import Loss, Manifest, SideInfo
from tracer.trace.reader import open_trace
from tracer.trace.schema import REQUESTS, Mark, Queue, Side
from tracer.trace.writer import TraceWriter

DEFLATE_WITHOUT_CALLS = received(12, Queue.DEFLATE, BACK, (1_410_000, 1_425_000, 0), calls=0)


def test_a_whole_capture_balances(tmp_path):
    book = ledger(both(tmp_path))
    assert book.balanced is True
    assert lines(book) == {
        "inflate: guest driver": (384, "not compared"),
        "inflate: guest kernel counter": (384, "equal"),
        "inflate: host requests": (384, "equal"),
        "inflate: host discarded": (384, "equal"),
        "deflate: guest driver": (128, "not compared"),
        "deflate: guest kernel counter": (128, "equal"),
        "deflate: host requests": (128, "equal"),
        "deflate: host advised": (128, "equal"),
        "reporting: guest driver": (1024, "not compared"),
        "reporting: host requests": (1024, "equal"),
        "reporting: host discarded": (1024, "equal"),
        "device: change of actual": (256, "equal"),
        "disk: host request rows": (4, "equal"),
        "disk: guest request rows": (4, "equal"),
        "loss: guest requests": (0, "equal"),
        "loss: host requests": (0, "equal"),
        "loss: host calls": (0, "equal"),
    }


def test_a_missing_host_row_shows_where_and_by_how_much(tmp_path):
    book = ledger(both(tmp_path, host={"rows": [HOST_ROWS[0], *HOST_ROWS[2:]]}))
    assert book.balanced is False
    found = lines(book)
    assert found["inflate: host requests"] == (256, "differs by -128")
    assert found["inflate: host discarded"] == (256, "equal")
    assert found["device: change of actual"] == (256, "equal")


def test_pages_lost_of_either_queue_are_named_and_held_against_neither(tmp_path):
    counters = HOST_COUNTERS | {"lost_requests": 1, "lost_other_pages": 128}
    rows = [HOST_ROWS[0], *HOST_ROWS[2:]]
    book = ledger(both(tmp_path, host={"rows": rows, "counters": counters}))
    assert book.balanced is False
    found = lines(book)
    assert found["inflate: host requests"] == (256, "not compared")
    assert found["deflate: host requests"] == (128, "not compared")
    assert found["reporting: host requests"] == (1024, "equal")
    assert found["loss: host pages of either queue"] == (128, "differs by +128")
    counters |= {"lost_inflate_pages": 9}
    (tmp_path / "more").mkdir()
    more = ledger(both(tmp_path / "more", host={"rows": rows, "counters": counters}))
    assert lines(more)["inflate: host requests and lost"] == (265, "not compared")


def test_failed_calls_discard_nothing(tmp_path):
    calls = [call(10, DONTNEED, 256), call(11, DONTNEED, 128, errno=22), *CALL_ROWS[2:]]
    found = lines(ledger(both(tmp_path, host={"calls": calls})))
    assert found["inflate: host discarded"] == (256, "differs by -128")


def test_two_calls_for_a_shared_page_count_it_once(tmp_path):
    punches = [call(10, 3, 256, call=1), call(11, 3, 128, call=1)]
    found = lines(ledger(both(tmp_path, host={"calls": [*CALL_ROWS, *punches]})))
    assert found["inflate: host discarded"] == (384, "equal")


def test_a_vmm_that_gives_no_advice_on_deflate_still_balances(tmp_path):
    rows = [*HOST_ROWS[:2], DEFLATE_WITHOUT_CALLS, HOST_ROWS[3]]
    calls = [*CALL_ROWS[:2], *CALL_ROWS[3:]]
    book = ledger(both(tmp_path, host={"rows": rows, "calls": calls}))
    assert lines(book)["deflate: host advised"] == (None, "not observed")
    assert book.balanced is True


def test_requests_without_discard_probes_are_not_observed(tmp_path):
    quiet = {"discard_calls": None, "discard_ns": None, "discard_bytes": None}
    rows = [row | quiet for row in HOST_ROWS]
    trace = open_trace(write_host(tmp_path / "h.balloon", rows=rows, calls=[]))
    assert lines(ledger(trace))["inflate: host discarded"] == (None, "not observed")
    assert captured_discards(trace)[Queue.INFLATE] == Discards(None, None)


def test_guest_counter_leaves_page_migrations_out(tmp_path):
    found = lines(ledger(both(tmp_path, guest={"rows": [*GUEST_ROWS, *MIGRATED]})))
    assert found["inflate: guest driver"] == (385, "not compared")
    assert found["inflate: guest kernel counter"] == (384, "equal")
    assert found["inflate: host requests"] == (384, "differs by -1")


def test_device_actual_that_moved_otherwise(tmp_path):
    counters = HOST_COUNTERS | {"actual_bytes_end": (2 << 30) - 250 * 4096}
    book = ledger(both(tmp_path, host={"counters": counters}))
    assert lines(book)["device: change of actual"] == (250, "differs by -6")
    assert book.balanced is False


@pytest.mark.parametrize("stream", ["requests", "calls"])
def test_anything_lost_unbalances(tmp_path, stream):
    counters = HOST_COUNTERS | {f"lost_{stream}": 3}
    book = ledger(both(tmp_path, host={"counters": counters}))
    assert lines(book)[f"loss: host {stream}"] == (3, "differs by +3")
    assert book.balanced is False


def test_listed_losses_unbalance_as_well(tmp_path):
    losses = [Loss(side="host", stream="calls", count=2, since_ns=None, until_ns=5)]
    book = ledger(open_trace(write_host(tmp_path / "h.balloon", losses=losses)))
    assert lines(book)["loss: host calls"] == (2, "differs by +2")


def test_missing_sides_are_not_observed(tmp_path):
    found = lines(ledger(open_trace(write_host(tmp_path / "h.balloon"))))
    assert found["inflate: guest driver"] == (None, "not observed")
    assert found["inflate: guest kernel counter"] == (None, "not observed")
    assert found["device: change of actual"] == (256, "equal")
    guest = ledger(open_trace(write_guest(tmp_path / "g.balloon", counters={})))
    assert lines(guest)["inflate: host requests"] == (None, "not observed")
    assert lines(guest)["device: change of actual"] == (None, "not observed")


def test_captured_discards_count_calls_and_time(tmp_path):
    assert captured_discards(both(tmp_path)) == {
        Queue.INFLATE: Discards(384, 40_000),
        Queue.DEFLATE: Discards(128, 5_000),
        Queue.REPORTING: Discards(2, 9_000),
    }


def test_counters_of_larger_guest_pages_are_scaled(tmp_path):
    # 8 guest pages of 64 KiB are 128 balloon pages.
    counters = GUEST_COUNTERS | {"vmstat_balloon_inflate_end": 1008}
    path = write_guest(
        tmp_path / "g.balloon",
        rows=[sent(0, Queue.INFLATE, SECOND, (1, 2, 3, 4, 5, None, 6))],
        counters=counters,
        page_size_bytes=65536,
    )
    assert lines(ledger(open_trace(path)))["inflate: guest kernel counter"] == (128, "equal")


def early(seq, at_ns, pfn):
    """An inflate of one page by the guest's clock, begun and ended within 5000 ns."""
    times = (at_ns, at_ns + 1000, at_ns + 2000, None, at_ns + 4000, None, at_ns + 5000)
    return sent(seq, Queue.INFLATE, [(pfn, 1)], times)


COUNTING = {"counted_begin_ns": 7_000, "counted_end_ns": 700_000}


def test_requests_before_and_after_the_counters_were_read_are_not_held_against_them(tmp_path):
    rows = [early(90, -20_000, 77), *GUEST_ROWS, early(91, 900_000, 78)]
    path = write_guest(
        tmp_path / "g.balloon", rows=rows, counters=GUEST_COUNTERS | COUNTING, end_ns=600_000
    )
    found = lines(ledger(open_trace(path)))
    assert found["inflate: guest driver"] == (386, "not compared")
    assert found["inflate: guest kernel counter"] == (384, "equal")


@pytest.mark.parametrize("at_ns", [-2_000, 3_000, 597_000, 650_000])
def test_a_request_under_way_while_the_counters_were_read_leaves_them_uncompared(tmp_path, at_ns):
    rows = [*GUEST_ROWS, early(90, at_ns, 77)]
    path = write_guest(
        tmp_path / "g.balloon", rows=rows, counters=GUEST_COUNTERS | COUNTING, end_ns=600_000
    )
    book = ledger(open_trace(path))
    assert lines(book)["inflate: guest kernel counter"] == (384, "not compared")
    assert lines(book)["deflate: guest kernel counter"] == (128, "equal")
    assert book.balanced is True


def test_requests_while_the_host_was_not_recorded_are_told_apart(tmp_path):
    guest = [*GUEST_ROWS, early(90, 3_000_000, 77)]
    counters = GUEST_COUNTERS | {"vmstat_balloon_inflate_end": 1385}
    book = ledger(both(tmp_path, guest={"rows": guest, "counters": counters, "end_ns": 4_000_000}))
    found = lines(book)
    assert found["inflate: guest driver"] == (385, "not compared")
    assert found["inflate: host requests"] == (384, "equal")
    assert found["inflate: guest only"] == (1, "not compared")
    assert found["device: change of actual"] == (256, "equal")
    assert book.balanced is True


def rejecting(row, pages):
    """The row, with pages outside the guest's memory that were not followed."""
    runs = [*row["runs"], {"pfn": 0xFFFFFFFF, "pages": 1}, {"pfn": 1 << 30, "pages": pages - 1}]
    return row | {"runs": runs, "pages": row["pages"] + pages, "rejected_pages": pages}


def test_garbage_is_told_apart_and_the_rest_balances(tmp_path):
    rows = [rejecting(HOST_ROWS[0], 7), HOST_ROWS[1], rejecting(HOST_ROWS[2], 2), HOST_ROWS[3]]
    book = ledger(open_trace(write_host(tmp_path / "h.balloon", rows=rows)))
    found = lines(book)
    assert found["inflate: host requests"] == (391, "not compared")
    assert found["inflate: host rejected"] == (7, "not compared")
    assert found["inflate: host discarded"] == (384, "equal")
    assert found["deflate: host rejected"] == (2, "not compared")
    assert found["deflate: host advised"] == (128, "equal")
    assert found["device: change of actual"] == (256, "equal")
    assert book.balanced is True


def test_garbage_that_was_followed_unbalances(tmp_path):
    rows = [rejecting(HOST_ROWS[0], 7), *HOST_ROWS[1:]]
    calls = [*CALL_ROWS, call(10, DONTNEED, 7)]
    book = ledger(open_trace(write_host(tmp_path / "h.balloon", rows=rows, calls=calls)))
    assert lines(book)["inflate: host discarded"] == (391, "differs by +7")
    assert book.balanced is False


def test_system_calls_alone_balance_nothing(tmp_path):
    calls = [{**call(10, DONTNEED, 256), "request_seq": None}]
    counters = {"actual_bytes_begin": 5 << 20, "actual_bytes_end": 5 << 20}
    path = write_host(tmp_path / "h.balloon", rows=[], calls=calls, counters=counters)
    book = ledger(open_trace(path))
    assert lines(book)["disk: host request rows"] == (0, "equal")
    assert book.balanced is None
    assert "system calls alone" in book.why_open


def test_a_still_balloon_balances_nothing(tmp_path):
    book = ledger(open_trace(write_host(tmp_path / "h.balloon", rows=[], calls=[], counters={})))
    assert book.balanced is None
    assert "did not move" in book.why_open


def test_pages_counted_once_are_not_called_balanced(tmp_path):
    quiet = {"discard_calls": None, "discard_ns": None, "discard_bytes": None}
    rows = [row | quiet for row in HOST_ROWS]
    path = write_host(tmp_path / "h.balloon", rows=rows, calls=[], counters={})
    book = ledger(open_trace(path))
    assert book.balanced is None
    assert "counted in one place alone" in book.why_open


def test_a_loss_unbalances_even_where_nothing_is_compared(tmp_path):
    counters = {"lost_calls": 3}
    book = ledger(
        open_trace(write_host(tmp_path / "h.balloon", rows=[], calls=[], counters=counters))
    )
    assert (book.balanced, book.why_open) == (False, "")


def with_actual(path, *marks, rows=HOST_ROWS, losses=()):
    """A host's trace whose recorder could not ask for `actual`, and saw it change."""
    info = SideInfo(page_size_bytes=4096, begin_ns=0, end_ns=2_000_000)
    with TraceWriter(path, Side.HOST) as writer:
        writer.append("requests", pa.RecordBatch.from_pylist(list(rows), schema=REQUESTS))
        for ts_ns, value in marks:
            writer.mark(Mark.ACTUAL, ts_ns, value=value)
        for loss in losses:
            writer.loss(loss.stream, loss.count, loss.since_ns, loss.until_ns, cause=loss.cause)
        writer.close(Manifest(sides={"host": info}))
    return ledger(open_trace(path))


AFTER_FIRST, AFTER_SECOND, AT_END = ((2 << 30) - pages * 4096 for pages in (256, 384, 256))


def test_actual_as_it_was_seen_to_change_is_held_against_the_requests_between(tmp_path):
    book = with_actual(
        tmp_path / "h.balloon",
        (1_060_000, AFTER_FIRST),
        (1_345_000, AFTER_SECOND),
        (1_430_000, AT_END),
    )
    assert lines(book)["device: change of actual"] == (0, "equal")
    two = with_actual(tmp_path / "two.balloon", (1_060_000, AFTER_FIRST), (1_345_000, AFTER_SECOND))
    assert lines(two)["device: change of actual"] == (128, "equal")
    assert two.balanced is True


def test_actual_that_moved_further_than_the_requests_unbalances(tmp_path):
    book = with_actual(
        tmp_path / "h.balloon", (1_060_000, AFTER_FIRST), (1_345_000, AFTER_SECOND - 40_960)
    )
    assert lines(book)["device: change of actual"] == (138, "differs by +10")
    assert book.balanced is False


def test_actual_is_not_compared_where_it_was_seen_once_or_requests_are_missing(tmp_path):
    once = with_actual(tmp_path / "once.balloon", (1_060_000, AFTER_FIRST))
    assert lines(once)["device: change of actual"] == (None, "not observed")
    loss = Loss(side="host", stream="requests", count=2, since_ns=None, until_ns=5, cause="ring")
    marks = (1_060_000, AFTER_FIRST), (1_345_000, AFTER_SECOND)
    lossy = with_actual(tmp_path / "lossy.balloon", *marks, losses=[loss])
    assert lines(lossy)["device: change of actual"] == (128, "not compared")


def test_pages_that_a_guest_lost_are_held_against_what_its_kernel_and_the_host_counted(tmp_path):
    lost = {"lost_requests": 1, "lost_inflate_pages": 128, "lost_deflate_pages": 0}
    kept = [GUEST_ROWS[0], *GUEST_ROWS[2:]]
    loss = Loss("guest", "requests", 1, 80_000, 360_000, "ring")
    changes = {"rows": kept, "counters": GUEST_COUNTERS | lost, "losses": [loss]}
    book = ledger(both(tmp_path, guest=changes))
    found = lines(book)
    assert found["inflate: guest driver"] == (256, "not compared")
    assert found["inflate: guest driver and lost"] == (384, "not compared")
    assert found["inflate: guest kernel counter"] == (384, "equal")
    assert found["inflate: host requests"] == (384, "equal")
    assert found["device: change of actual"] == (256, "equal")
    assert found["loss: guest requests"] == (1, "differs by +1")
    assert "deflate: guest driver and lost" not in found
    assert book.balanced is False
