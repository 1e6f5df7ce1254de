"""However losses fall in time: all are counted, by stream and cause, in a short list."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.trace import loss_book
from tracer.trace.loss_book import WIDTH_NS, LossBook
from tracer.trace.manifest import Loss


@pytest.fixture(scope="module")
def few_entries():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_book, "MOST_ENTRIES", 4)
        yield


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["requests", "calls"]),
            st.sampled_from(["ring", "quota", None]),
            st.integers(1, 9),
            st.integers(0, 100) | st.none(),
            st.integers(0, 3 * WIDTH_NS),
        ),
        max_size=60,
    )
)
def test_every_loss_is_counted(few_entries, steps):
    book, rows, now_ns = LossBook(), [], 0
    for stream, cause, count, since_ns, later_ns in steps:
        now_ns += later_ns
        book.add(Loss("host", stream, count, since_ns, now_ns, cause))
        rows += book.take(now_ns)
        assert len(book.entries) <= 4 + 6 + 6
    rows += book.take(now_ns, everything=True)
    for found in (rows, book.entries):
        totals: dict = {}
        for item in found:
            key = (item.stream, item.cause)
            totals[key] = totals.get(key, 0) + item.count
        expected: dict = {}
        for stream, cause, count, *_ in steps:
            expected[stream, cause] = expected.get((stream, cause), 0) + count
        assert totals == expected
