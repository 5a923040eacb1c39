"""Stressors: pure, independent of each other, as frequent as they are configured, and what they are called."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.config.schema import Plant, StressorConfig
from trainenv.data.stressors import BLOCK, Stressors, Tokens

PAPER: dict[str, Any] = {
    "rare_tokens": 0.02,
    "long_sequence": 0.01,
    "artefacts": 0.01,
    "block_shuffle": 0.05,
}
RARE = np.arange(900, 910)
ARTEFACTS = np.arange(950, 1000)


def stressors(seed: Any = 7, epoch_steps: Any = 1000, **config: Any) -> Stressors:
    return Stressors(StressorConfig(**config), RARE, ARTEFACTS, 1000, seed, epoch_steps)


def clean(rows: int = 4, length: int = 65) -> Tokens:
    return np.arange(rows * length, dtype=np.int64).reshape(rows, length)


def hits(made: Stressors, kind: Any, indices: range) -> set[int]:
    return {index for index in indices if made.size(kind, index) > 0}


@given(index=st.integers(0, 10**7), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_pure(index: int, seed: int) -> None:
    config: dict[str, Any] = dict.fromkeys(PAPER, 0.5)
    tokens = clean()
    one, names = stressors(seed, **config)(tokens, index)
    other = stressors(seed, **config)
    other(tokens, index + 1)
    two, again = other(tokens, index)
    assert (tokens == clean()).all()
    assert (one == two).all()
    assert names == again
    assert one.shape == tokens.shape
    assert one.dtype == np.int64
    assert (one >= 0).all()
    assert (one < 1000).all()
    assert (one != tokens).any() or not names


def test_off_by_default() -> None:
    quiet = stressors()
    assert all(quiet(clean(), index)[1] == () and not quiet.is_long(index) for index in range(500))
    assert quiet.lr_factor(0) == 1.0


@pytest.mark.parametrize("kind", ["rare_tokens", "long_sequence", "artefacts"])
@pytest.mark.parametrize("rate", [0.01, 0.02, 0.3, 1.0])
def test_rates_are_within_binomial_bounds(kind: str, rate: float) -> None:
    n = 20_000
    found = len(hits(stressors(**{kind: rate}), kind, range(n)))
    assert abs(found - n * rate) <= 4 * math.sqrt(n * rate * (1 - rate))


def test_seeds_hit_different_batches() -> None:
    assert (
        len(
            {
                frozenset(hits(stressors(seed, rare_tokens=0.02), "rare_tokens", range(1000)))
                for seed in range(5)
            }
        )
        == 5
    )


@pytest.mark.parametrize("kind", list(PAPER))
def test_a_higher_rate_hits_a_superset(kind: Any) -> None:
    found = [
        hits(stressors(**{kind: rate}), kind, range(4000))
        for rate in (0.001, 0.02, 0.021, 0.4, 1.0)
    ]
    assert all(low <= high for low, high in pairwise(found))
    assert found[-1] == set(range(4000))


@pytest.mark.parametrize("kind", list(PAPER))
def test_stressors_are_independent(kind: str) -> None:
    alone = stressors(**{kind: 0.2})
    for others in (PAPER, dict.fromkeys(PAPER, 0.9)):
        together = stressors(**{**others, kind: 0.2}, planted=(Plant(at=5, kind="random_tokens"),))
        assert hits(together, kind, range(1000)) == hits(alone, kind, range(1000))
    pair = hits(stressors(rare_tokens=0.5), "rare_tokens", range(4000)) & hits(
        stressors(artefacts=0.5), "artefacts", range(4000)
    )
    assert 850 < len(pair) < 1150


@given(epoch_steps=st.integers(1, 500), rate=st.floats(0.001, 1), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_block_shuffle_covers_one_stretch_of_each_epoch(
    epoch_steps: int, rate: float, seed: int
) -> None:
    made = stressors(seed, epoch_steps, block_shuffle=rate)
    for epoch in range(3):
        inside = sorted(
            hits(made, "block_shuffle", range(epoch * epoch_steps, (epoch + 1) * epoch_steps))
        )
        assert len(inside) == math.ceil(rate * epoch_steps - 1e-9)
        assert inside == list(range(inside[0], inside[0] + len(inside)))


def test_block_shuffle_keeps_blocks_whole() -> None:
    made = stressors(planted=(Plant(at=0, kind="block_shuffle"),))
    tokens, names = made(clean(8, 70), 0)
    assert names == ("block_shuffle",)
    orders = set()
    for before, after in zip(clean(8, 70), tokens, strict=True):
        blocks = after[:64].reshape(4, BLOCK)
        assert sorted(map(tuple, blocks)) == sorted(map(tuple, before[:64].reshape(4, BLOCK)))
        assert (after[64:] == before[64:]).all()
        orders.add(tuple(blocks[:, 0] - before[0]))
    assert len(orders) > 2


@pytest.mark.parametrize(
    ("kind", "pool"), [("rare_tokens", RARE), ("random_tokens", np.arange(1000))]
)
@pytest.mark.parametrize(("size", "share"), [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (40.0, 1.0)])
def test_bursts_replace_their_share_in_runs(
    kind: Any, pool: Any, size: float, share: float
) -> None:
    made = stressors(planted=(Plant(at=9, kind=kind, size=size),))
    before = np.full((64, 257), 5000)
    tokens, names = made(before, 9)
    changed = tokens != before
    assert names == (kind,)
    assert np.isin(tokens[changed], pool).all()
    assert changed.mean() == pytest.approx(share, abs=0.06)
    edges = (changed[:, 1:] != changed[:, :-1]).sum(axis=1).mean()
    assert edges <= 2 * share * 257 / 16 + 2


def test_a_drawn_burst_takes_about_half() -> None:
    made = stressors(rare_tokens=1.0)
    share = np.mean([(made(np.full((8, 129), 1), index)[0] != 1).mean() for index in range(50)])
    assert share == pytest.approx(0.5, abs=0.08)


def test_artefacts_are_mojibake_in_order_and_shift_the_text() -> None:
    made = stressors(artefacts=1.0)
    before = np.tile(np.arange(256, dtype=np.int64), (16, 1))
    after, names = made(before, 3)
    assert names == ("artefacts",)
    found = np.isin(after, ARTEFACTS)
    assert 0.15 < found.mean() < 0.35
    inside = found[:, 1:] & found[:, :-1]
    steps = np.diff(after, axis=1)[inside]
    assert Counter(steps.tolist()).most_common(1)[0][0] == 1
    assert ((np.diff(after, axis=1) == 0) & ~inside).any()  # a token twice
    assert (
        (after[:, 1:] - after[:, :-1] == 2) & ~found[:, 1:] & ~found[:, :-1]
    ).any()  # a token gone


@pytest.mark.parametrize("kind", ["rare_tokens", "artefacts", "block_shuffle", "random_tokens"])
def test_planted_events_hit_with_certainty_and_only_there(kind: Any) -> None:
    made = stressors(
        planted=(Plant(at=10, kind=kind, steps=3), Plant(at=12, kind=kind, steps=2, size=0.5))
    )
    assert [index for index in range(40) if made(clean(), index)[1]] == [10, 11, 12, 13]
    assert [made.size(kind, index) for index in range(9, 15)] == [0, 1, 1, 1, 0.5, 0]


def test_several_stressors_are_all_named() -> None:
    planted = tuple(
        Plant(at=1, kind=kind)
        for kind in ("rare_tokens", "artefacts", "block_shuffle", "long_sequence", "lr_spike")
    )
    made = stressors(planted=planted)
    assert made(clean(), 1)[1] == ("block_shuffle", "artefacts", "rare_tokens")
    assert made.is_long(1)
    assert not made.is_long(2)


def test_short_sequences_survive_every_stressor() -> None:
    made = stressors(
        **dict.fromkeys(PAPER, 1.0), planted=(Plant(at=0, kind="random_tokens", size=0.01),)
    )
    for length in (2, 3, 15, 33):
        assert made(clean(1, length), 0)[0].shape == (1, length)


def test_the_learning_rate_of_a_harsh_warm_up_and_of_spikes() -> None:
    spikes = (
        Plant(at=8, kind="lr_spike", steps=2, size=3.0),
        Plant(at=9, kind="lr_spike", size=10.0),
        Plant(at=0, kind="rare_tokens"),
    )
    made = stressors(harsh_warmup_steps=5, harsh_warmup_lr=4.0, planted=spikes)
    assert [made.lr_factor(step) for step in range(12)] == [4, 4, 4, 4, 4, 1, 1, 1, 3, 30, 1, 1]
