"""The data order: a permutation of each epoch less what is skipped, whatever was done to it and when."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.training.data_order import DataOrder


def seen(order: DataOrder, steps: int) -> list[int]:
    return [order.index(step) for step in range(steps)]


def raw(order: DataOrder, positions: int) -> list[int]:
    """The indices by position when nothing is skipped: blocks shuffled one reorder after the other, by hand."""
    indices: list[int] = []
    for epoch in range(-(-positions // order.epoch_steps)):
        here = list(range(epoch * order.epoch_steps, (epoch + 1) * order.epoch_steps))
        blocks = [
            here[start : start + order.block_steps]
            for start in range(0, len(here), order.block_steps)
        ]
        whole = order.epoch_steps // order.block_steps
        for number, position in enumerate(order.reorders):
            if position // order.epoch_steps == epoch:
                first = next(
                    n for n in count() if n * order.block_steps >= position % order.epoch_steps
                )
                rng = np.random.Generator(np.random.Philox(key=[order.seed, number]))
                places = rng.permutation(np.arange(first, whole)) if first < whole else []
                blocks[first:whole] = [blocks[place] for place in places]
        indices += [index for block in blocks for index in block]
    return indices


@st.composite
def histories(draw: st.DrawFn) -> tuple[DataOrder, int]:
    """An order after a random sequence of steps, skips of what is to come, and reorders; and how far it went."""
    order = DataOrder(
        seed=draw(st.integers(0, 2**63 - 1)),
        epoch_steps=draw(st.integers(1, 23)),
        block_steps=draw(st.integers(1, 6)),
    )
    step = 0
    for _ in range(draw(st.integers(0, 6))):
        step += draw(st.integers(0, 15))
        if draw(st.booleans()):
            order = order.reorder(step)
        else:
            ahead = order.ahead(step, range(4 * order.epoch_steps + step))
            order = order.skip(draw(st.lists(st.sampled_from(ahead), max_size=4)) if ahead else [])
    return order, step


orders = histories().map(lambda history: history[0])


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(1, 50), block=st.integers(1, 60))
def test_identity_when_nothing_was_done(seed: int, epoch: int, block: int) -> None:
    assert seen(DataOrder(seed, epoch, block), 120) == list(range(120))


@given(order=orders)
@settings(max_examples=200)
def test_each_epoch_is_a_permutation_of_its_indices_less_the_skipped(order: DataOrder) -> None:
    epochs = 4
    expected = [
        [
            i
            for i in range(e * order.epoch_steps, (e + 1) * order.epoch_steps)
            if i not in order.skips
        ]
        for e in range(epochs)
    ]
    taken = seen(order, sum(map(len, expected)))
    start = 0
    for indices in expected:
        assert sorted(taken[start : start + len(indices)]) == indices
        start += len(indices)


@given(order=orders)
@settings(max_examples=200)
def test_the_order_by_hand(order: DataOrder) -> None:
    kept = [index for index in raw(order, 5 * order.epoch_steps) if index not in order.skips]
    assert seen(order, len(kept)) == kept


@given(
    history=histories(), steps=st.integers(0, 40), picks=st.lists(st.integers(0, 60), max_size=5)
)
def test_what_was_seen_stays(history: tuple[DataOrder, int], steps: int, picks: list[int]) -> None:
    order, step = history
    step += steps
    before = seen(order, step)
    assert seen(order.reorder(step), step) == before
    future = order.skip(order.ahead(step, picks))
    assert seen(future, step) == before
    assert seen(future.reorder(step), step) == before


@given(history=histories(), picks=st.lists(st.integers(0, 80), max_size=12))
def test_ahead_is_what_later_steps_see(history: tuple[DataOrder, int], picks: list[int]) -> None:
    order, step = history
    later = {order.index(s) for s in range(step, step + 160)}
    assert order.ahead(step, picks) == tuple(sorted(set(picks) & later))


@given(history=histories(), picks=st.lists(st.integers(0, 80), max_size=6))
def test_skipping_drops_those_and_nothing_else(
    history: tuple[DataOrder, int], picks: list[int]
) -> None:
    order, step = history
    chosen = order.ahead(step, picks)
    rest = [index for index in seen(order, step + 60) if index not in chosen]
    assert seen(order.skip(chosen), len(rest)) == rest


@given(history=histories())
def test_reorder_moves_whole_blocks_of_this_epoch_only(history: tuple[DataOrder, int]) -> None:
    order, step = history
    size, block = order.epoch_steps, order.block_steps
    after = raw(order.reorder(step), 6 * size)
    for epoch in range(6):
        here = after[epoch * size : (epoch + 1) * size]
        assert {i // size for i in here} == {epoch}
        for start in range(0, size, block):
            part = here[start : start + block]
            assert part == list(range(part[0], part[0] + len(part)))
            assert (part[0] - epoch * size) % block == 0
        if size % block:
            assert here[-(size % block) :] == list(
                range((epoch + 1) * size - size % block, (epoch + 1) * size)
            )
    assert after[: len(raw(order, step))][:step] == raw(order, 6 * size)[:step]


def test_reorder_does_shuffle() -> None:
    order = DataOrder(seed=1, epoch_steps=160, block_steps=10)
    moved = order.reorder(25)
    assert seen(moved, 30) == list(range(30))
    assert seen(moved, 160) != list(range(160))
    assert seen(moved, 320)[160:] == list(range(160, 320))
    assert seen(moved.reorder(25), 160) != seen(moved, 160)
    assert seen(DataOrder(seed=2, epoch_steps=160, block_steps=10).reorder(25), 160) != seen(
        moved, 160
    )


def test_the_next_step_s_own_block_counts_where_it_starts() -> None:
    at_the_start = {DataOrder(seed, 40, 10).reorder(10).index(10) for seed in range(30)}
    assert at_the_start == {10, 20, 30}
    inside = {DataOrder(seed, 40, 10).reorder(11).index(11) for seed in range(30)}
    assert inside == {11}


def test_a_partial_last_block_stays() -> None:
    for seed in range(20):
        assert seen(DataOrder(seed, 34, 10).reorder(0), 34)[30:] == [30, 31, 32, 33]


@given(history=histories())
def test_a_pure_function_of_its_state(history: tuple[DataOrder, int]) -> None:
    order, _ = history
    fresh = DataOrder(order.seed, order.epoch_steps, order.block_steps)
    again = fresh.load_state_dict(json.loads(json.dumps(order.state_dict())))
    assert again == order
    assert hash(again) == hash(order)
    backwards = [again.index(step) for step in reversed(range(50))][::-1]
    assert backwards == seen(order, 50)


def test_skips_are_ascending_and_stand_once() -> None:
    assert DataOrder(0, 10, 2).skip([7, 3]).skip([3, 5]).skips == (3, 5, 7)


def test_nothing_is_changed_in_place() -> None:
    order = DataOrder(0, 10, 2)
    order.skip([3])
    order.reorder(1)
    assert order == DataOrder(0, 10, 2)


@pytest.mark.parametrize("skips", [range(10), range(5, 25)])
def test_a_whole_epoch_can_be_skipped(skips: range) -> None:
    order = DataOrder(0, 10, 3).skip(skips)
    assert seen(order, 20) == [i for i in range(100) if i not in skips][:20]
