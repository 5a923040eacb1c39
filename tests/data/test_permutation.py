"""Keyed permutations: they are permutations, differ by key, look random and take no memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainenv.data.permutation import Permutation, ShuffledRows
from trainenv.types import UserError


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@example(size=1, key=0)
@example(size=2, key=1)
@example(size=4, key=7)
@example(size=1025, key=3)
def test_every_row_has_one_place(size: int, key: int) -> None:
    rows = Permutation(size, key)(np.arange(size))
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(size))


@given(size=st.integers(2**20, 2**62), key=st.integers(0, 2**64 - 1), start=st.integers(0, 2**62))
def test_large_permutations_stay_inside_and_keep_rows_apart(
    size: int, key: int, start: int
) -> None:
    places = (np.arange(50) + start % (size - 50)).astype(np.int64)
    rows = Permutation(size, key)(places)
    assert ((rows >= 0) & (rows < size)).all()
    assert len(set(rows.tolist())) == 50


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1), place=st.integers(0))
def test_a_place_alone_is_as_among_others(size: int, key: int, place: int) -> None:
    permutation = Permutation(size, key)
    place %= size
    assert permutation(place) == permutation(np.arange(size))[place]
    assert permutation(np.arange(size).reshape(1, -1)).shape == (1, size)


def test_keys_give_other_orders() -> None:
    orders = {tuple(Permutation(200, key)(np.arange(200)).tolist()) for key in range(100)}
    assert len(orders) == 100


@pytest.mark.parametrize("size", [7, 64, 100])
def test_rows_are_spread_evenly_over_the_places(size: int) -> None:
    """Over 1500 keys each row is as often at each place, and neighbours are no neighbours."""
    keys = 1500
    counts = np.zeros((size, size))
    near = 0
    for key in range(keys):
        rows = Permutation(size, key)(np.arange(size))
        counts[np.arange(size), rows] += 1
        near += np.count_nonzero(np.diff(rows) == 1)
    expected = keys / size
    chi = ((counts - expected) ** 2 / expected).sum() / (size - 1) ** 2
    assert chi == pytest.approx(1.0, abs=4 * 2**0.5 / (size - 1))
    assert near / keys == pytest.approx((size - 1) / size, rel=0.15)  # as in a random order


def test_nothing_grows_with_the_number_of_rows() -> None:
    tracemalloc.start()
    Permutation(10**15, 1)(np.arange(64))
    ShuffledRows(rows=10**15, batch_size=64)(10**10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_epochs_are_shuffled_anew_and_each_holds_a_row_once() -> None:
    order = ShuffledRows(rows=103, batch_size=10, seed=5)
    assert order.epoch_steps == 10
    epochs = [np.concatenate([order(10 * epoch + k) for k in range(10)]) for epoch in range(20)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 100
    assert len({tuple(rows.tolist()) for rows in epochs}) == 20
    left_out = {tuple(set(range(103)) - set(rows.tolist())) for rows in epochs}
    assert len(left_out) > 15
    other = ShuffledRows(rows=103, batch_size=10, seed=6)
    assert not np.array_equal(order(0), other(0))
    plain = ShuffledRows(rows=103, batch_size=10, shuffle=False)
    assert plain(1).tolist() == plain(11).tolist() == list(range(10, 20))


@pytest.mark.parametrize(("size", "key"), [(0, 0), (-1, 0), (2.5, 0), (5, -1)])
def test_bad_values_are_refused(size: object, key: object) -> None:
    with pytest.raises(UserError, match=r"(size|key) must be a whole number"):
        Permutation(size, key)  # type: ignore[arg-type]
