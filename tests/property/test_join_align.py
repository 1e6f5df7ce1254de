"""Alignment and clock fit against a simulated truth."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracer.account.align import align, content_hashes
from tracer.account.clocks import fit_clocks

ORIGIN = 10**14


def common(kept_left, kept_right):
    return sorted(set(kept_left) & set(kept_right))


@given(st.integers(0, 60), st.data())
def test_distinct_contents_are_all_paired(count, data):
    keep = st.lists(st.booleans(), min_size=count, max_size=count)
    left = [i for i, kept in enumerate(data.draw(keep)) if kept]
    right = [i for i, kept in enumerate(data.draw(keep)) if kept]
    hashes = np.arange(1000, 1000 + count, dtype=np.uint64)
    in_left, in_right = align(hashes[left], hashes[right])
    assert [left[i] for i in in_left] == common(left, right)
    assert [right[i] for i in in_right] == common(left, right)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_pairs_never_cross_and_never_mix_contents(left, right):
    a, b = np.array(left, np.uint64), np.array(right, np.uint64)
    in_a, in_b = align(a, b)
    assert np.all(np.diff(in_a) > 0)
    assert np.all(np.diff(in_b) > 0)
    assert np.array_equal(a[in_a], b[in_b])
    assert len(in_a) or not set(left) & set(right)


@given(
    period=st.integers(20, 80),
    cycles=st.integers(3, 6),
    offset=st.integers(-(10**15), 10**15),
    seed=st.integers(0, 2**32 - 1),
)
def test_repeated_contents_are_told_apart_by_their_times(period, cycles, offset, seed):
    rng = np.random.default_rng(seed)
    count = period * cycles
    contents = np.tile(np.arange(period, dtype=np.uint64), cycles)
    send = ORIGIN + np.cumsum(rng.integers(10**6, 3 * 10**6, count))
    pop = send + offset + rng.integers(1000, 20_000, count)
    # The host attaches one cycle late; both lose some rows.
    left = np.flatnonzero(rng.random(count) > 0.05)
    right = np.flatnonzero((rng.random(count) > 0.05) & (np.arange(count) >= period))
    in_left, in_right = align(contents[left], contents[right], send[left], pop[right])
    # A content left with one row on each side is a pair by content alone, right or not.
    counts = [np.bincount(contents[side].astype(int), minlength=period) for side in (left, right)]
    repeated = np.maximum(*counts) > 1
    told = repeated[contents[left[in_left]].astype(int)]
    both = np.intersect1d(left, right)
    expected = both[repeated[contents[both].astype(int)]]
    assert np.array_equal(left[in_left][told], expected)
    assert np.array_equal(right[in_right][told], expected)


def test_gaps_are_searched_for_what_ranks_do_not_propose():
    # Four rounds of ten contents; content 3 is lost in the first and in the last, so that its ranks
    # point one round off from either end.
    left = np.tile(np.arange(10, dtype=np.uint64), 4)
    kept = np.delete(np.arange(40), [3, 33])
    in_left, in_right = align(left, left[kept])
    assert in_left.tolist() == kept.tolist()
    assert in_right.tolist() == list(range(38))


def test_a_hundred_thousand_equal_contents_do_not_explode():
    same = np.zeros(100_000, np.uint64)
    in_left, in_right = align(same, same[:-1000])
    assert len(in_left) == len(in_right) == 99_000


def test_hash_depends_on_order_sign_and_row_bounds():
    offsets = np.array([0, 2, 4, 6, 7, 8, 8], np.int64)
    pfn = np.array([1, 9, 9, 1, 1, 9, 1, 9], np.uint64)
    pages = np.array([2, 2, 2, 2, 2, -2, 2, 2], np.int32)
    assert len(set(content_hashes(offsets, pfn, pages).tolist())) == 6


@st.composite
def exchanges(draw):
    """True clock line, and what both sides saw of each request."""
    count = draw(st.integers(1, 50))
    offset = draw(st.integers(-(10**15), 10**15))
    drift = draw(st.integers(-500, 500)) * 1e-6
    each = st.integers(0, 10**7)
    steps = [draw(st.tuples(each, each, each, st.integers(0, 10**10))) for _ in range(count)]
    out, work, back, pause = np.array(steps, np.int64).T
    send = 2 * 10**15 + np.cumsum(out + work + back + pause)
    pop_by_guest, push_by_guest = send + out, send + out + work
    return offset, drift, send, pop_by_guest, push_by_guest, push_by_guest + back


def true_difference(offset, drift, guest_ns):
    return offset + np.rint(drift * (guest_ns - 2 * 10**15).astype(np.float64)).astype(np.int64)


@given(exchanges())
def test_the_truth_lies_within_the_bound(exchange):
    offset, drift, send, pop, push, wake = exchange
    fit = fit_clocks(
        send,
        pop + true_difference(offset, drift, pop),
        push + true_difference(offset, drift, push),
        wake,
    )
    assert fit.consistent
    assert fit.violations == 0
    for at in (send, pop, push, wake):
        error = np.abs(fit.difference_ns(at) - true_difference(offset, drift, at))
        assert error.max() <= fit.bound_ns


@given(exchanges(), st.integers(10**9, 10**12))
def test_a_clock_step_is_never_silent(exchange, step):
    offset, drift, send, pop, push, wake = (
        np.concatenate([column] * 2) if isinstance(column, np.ndarray) else column
        for column in exchange
    )
    later = np.arange(len(send)) >= len(send) // 2
    send, pop, push, wake = (column + later * 10**9 for column in (send, pop, push, wake))
    truth = [true_difference(offset, drift, at) + later * step for at in (pop, push)]
    send_truth = true_difference(offset, drift, send) + later * step
    fit = fit_clocks(send, pop + truth[0], push + truth[1], wake)
    # Some steps hide inside slow requests or in the drift; what is claimed must hold all the same.
    assert np.abs(fit.difference_ns(send) - send_truth).max() <= fit.bound_ns
    assert fit.consistent == (fit.violations == 0)


def test_impossible_pairs_are_counted_and_widen_the_bound():
    send = ORIGIN + np.arange(10, dtype=np.int64) * 10**9
    pop, push, wake = send + 1000, send + 2000, send + 3000
    pop[5:] += 10**8
    push[5:] += 10**8
    fit = fit_clocks(send, pop, push, wake)
    assert not fit.consistent
    assert fit.violations > 0
    difference = fit.difference_ns(send)
    assert np.abs(difference[:5]).max() <= fit.bound_ns
    assert np.abs(difference[5:] - 10**8).max() <= fit.bound_ns


def test_no_pair_no_fit():
    none = np.empty(0, np.int64)
    assert fit_clocks(none, none, none, none) is None
