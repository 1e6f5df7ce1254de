"""The ledger of the queues that discard nothing: hints, statistics, page migrations."""

from tests.unit.capture_bundle import (
    GUEST_COUNTERS,
    GUEST_ROWS,
    HOST_ROWS,
    both,
    request,
    write_guest,
    write_host,
)
from tests.unit.ledger_lines import MIGRATED, lines
from tracer.account.ledger import ledger
from tracer.account.merge import merge_sides
from tracer.trace.reader import open_trace
from tracer.trace.schema import Queue, Side, Wire

HINT = [(4096, 1024)]


def hint(side, seq, runs, **columns):
    columns = {"caller": None} | columns
    return request(side, seq, Queue.FREE_PAGE_HINT, runs, wire=Wire.SCATTERLIST, **columns)


def hints(*, lost=()):
    """Rows of both sides for the begin, two blocks and the end of hints."""
    guest, host = [], []
    for place, runs in enumerate(([], HINT, [(16384, 1024)], [])):
        at_ns = 610_000 + 1000 * place
        identity = {"hint_id": 0x80000001 if place == 0 else 0} if not runs else {}
        guest.append(hint(Side.GUEST, 10 + place, runs, send_ns=at_ns, **identity))
        if place not in lost:
            times = {"pop_ns": at_ns + 1_000_200, "push_ns": at_ns + 1_000_400}
            host.append(hint(Side.HOST, 20 + place, runs, **times, **identity))
    return guest, host


def test_hinted_blocks_are_the_same_on_both_sides(tmp_path):
    guest, host = hints()
    book = ledger(
        both(tmp_path, guest={"rows": GUEST_ROWS + guest}, host={"rows": HOST_ROWS + host})
    )
    found = lines(book)
    assert found["free_page_hint: guest driver"] == (2048, "not compared")
    assert found["free_page_hint: host requests"] == (2048, "equal")
    assert not any(name.startswith("free_page_hint: host disc") for name in found)
    assert book.balanced is True


def test_a_hint_that_the_host_lacks_unbalances(tmp_path):
    guest, host = hints(lost=(2,))
    book = ledger(
        both(tmp_path, guest={"rows": GUEST_ROWS + guest}, host={"rows": HOST_ROWS + host})
    )
    assert lines(book)["free_page_hint: host requests"] == (1024, "differs by -1024")


def test_migrations_agree_with_the_kernels_count(tmp_path):
    for counted, status in ((1, "equal"), (2, "differs by +1")):
        counters = GUEST_COUNTERS | {
            "vmstat_balloon_migrate_begin": 7,
            "vmstat_balloon_migrate_end": 7 + counted,
        }
        path = tmp_path / f"{counted}.balloon"
        book = ledger(
            open_trace(write_guest(path, rows=[*GUEST_ROWS, *MIGRATED], counters=counters))
        )
        assert lines(book)["migration: guest driver"] == (1, "not compared")
        assert lines(book)["migration: guest kernel counter"] == (counted, status)


def answers(count, *, also_host=()):
    """Answers with statistics, a second apart, and pops of the host at further seconds."""
    guest = [
        request(Side.GUEST, 100 + n, Queue.STATS, [], kick_ns=n * 10**9, caller=None)
        for n in range(1, count + 1)
    ]
    host = [
        request(Side.HOST, 200 + n, Queue.STATS, [], pop_ns=n * 10**9 + 1_000_500)
        for n in sorted({*range(1, count + 1), *also_host})
    ]
    return guest, host


def statistics(tmp_path, guest, host):
    return ledger(
        both(
            tmp_path,
            guest={"rows": GUEST_ROWS + guest, "end_ns": 6 * 10**9},
            host={"rows": HOST_ROWS + host, "end_ns": 9 * 10**9},
        )
    )


def test_answers_with_statistics_agree(tmp_path):
    book = statistics(tmp_path, *answers(5))
    assert lines(book)["stats: guest driver"] == (5, "not compared")
    assert lines(book)["stats: host requests"] == (5, "equal")
    assert book.balanced is True


def test_answers_while_the_guest_was_not_recorded_are_told_apart(tmp_path):
    book = statistics(tmp_path, *answers(5, also_host=(7, 8)))
    assert lines(book)["stats: host requests"] == (5, "equal")
    assert lines(book)["stats: host only"] == (2, "not compared")


def test_an_answer_that_the_guest_did_not_record_unbalances(tmp_path):
    guest, host = answers(5)
    del guest[2]
    assert lines(statistics(tmp_path, guest, host))["stats: host requests"] == (5, "differs by +1")


def test_statistics_without_fitted_clocks_are_not_compared(tmp_path):
    guest, host = answers(3)
    path = write_host(tmp_path / "vm.balloon", rows=host, calls=[])
    merge_sides(path, write_guest(tmp_path / "g.balloon", rows=guest))
    assert lines(ledger(open_trace(path)))["stats: host requests"] == (3, "not compared")
