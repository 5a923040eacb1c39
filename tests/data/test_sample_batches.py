"""Batches of samples: labels, balance, curriculum, and a pure function of seed and index."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.data.tasks import EncodedSamples, Sample, SampleBatches
from trainenv.types import IGNORED, UserError


def encoded(rewards: list[float], lengths: list[int] | None = None) -> EncodedSamples:
    """Samples whose first token is their place, with a prompt of two tokens."""
    lengths = lengths or [5] * len(rewards)
    return EncodedSamples(
        tokens=[
            np.array([place] + [7] * (size - 2) + [0], np.uint8)
            for place, size in enumerate(lengths)
        ],
        prompts=np.full(len(rewards), 2, np.int64),
        rewards=np.array(rewards, np.float32),
        difficulties=np.arange(len(rewards), dtype=np.float64),
        padding=0,
    )


def places(batches: SampleBatches, index: int) -> list[int]:
    return [int(row[0]) for micro in batches(index).micro for row in micro["tokens"]]


def test_labels_are_the_solution_and_its_end() -> None:
    samples = encoded([1, 0], [5, 4])
    micro = samples.micro_batch([0, 1], 6)
    assert micro["tokens"].tolist() == [[0, 7, 7, 7, 0, 0, 0], [1, 7, 7, 0, 0, 0, 0]]
    n = IGNORED
    assert micro["labels"].tolist() == [[n, n, 7, 7, 0, n, n], [n, n, 7, 0, n, n, n]]
    assert micro["reward"].tolist() == [1, 0]
    assert (micro["tokens"].dtype, micro["labels"].dtype) == (torch.int64, torch.int64)
    assert micro["reward"].dtype == torch.float32


def test_an_unknown_reward_is_not_a_number() -> None:
    assert math.isnan(Sample("t", "p", "s", None).reward)
    assert math.isnan(float(encoded([math.nan]).micro_batch([0], 6)["reward"][0]))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_balanced_batches_take_turns(accumulation: int) -> None:
    samples = encoded([1] * 30 + [0] * 20 + [math.nan] * 5)
    batches = SampleBatches(samples, 6, 8, accumulation, kind="balanced")
    assert batches.epoch_steps == 5
    for index in range(12):
        micros = batches(index).micro
        assert len(micros) == accumulation
        for micro in micros:
            assert micro["reward"].tolist() == [1, 0] * (4 // accumulation)
    seen = [place for index in range(5) for place in places(batches, index)]
    assert len(set(seen)) == 40


@given(st.integers(0, 60), st.integers(0, 5))
@settings(max_examples=30)
def test_a_batch_is_a_function_of_seed_and_index(index: int, seed: int) -> None:
    samples = encoded([1, 0] * 20)

    def made() -> SampleBatches:
        return SampleBatches(samples, 6, 4, seed=seed, kind="balanced")

    batches = made()
    later = places(batches, index + 30)
    assert places(batches, index) == places(made(), index)
    assert places(batches, index + 30) == later
    again = pickle.loads(pickle.dumps(batches))
    assert places(again, index) == places(deepcopy(batches), index) == places(batches, index)


def test_an_epoch_has_each_sample_once_and_the_next_another_order() -> None:
    batches = SampleBatches(encoded([1] * 40 + [0] * 7), 6, 8)
    epochs = [
        [place for step in range(5) for place in places(batches, 5 * epoch + step)]
        for epoch in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1]
    assert epochs[0] != [
        place
        for step in range(5)
        for place in places(SampleBatches(encoded([1] * 40), 6, 8, seed=1), step)
    ]


def test_a_curriculum_starts_with_easy_samples() -> None:
    samples = encoded([1, 0] * 100)
    batches = SampleBatches(samples, 6, 20, kind="curriculum")

    def difficulty(index: int) -> float:
        return float(np.mean(places(batches, index)))

    first = [difficulty(index) for index in range(10)]
    assert np.corrcoef(first, range(10))[0, 1] > 0.9
    assert difficulty(0) < 40
    assert difficulty(9) > 150
    later = [difficulty(index) for index in range(10, 20)]
    assert 60 < min(later) < max(later) < 140
    assert sorted(place for index in range(10) for place in places(batches, index)) == list(
        range(200)
    )
    assert all(
        micro["reward"].mean() == 0.5 for index in range(10) for micro in batches(index).micro
    )


def test_long_samples_are_left_out() -> None:
    batches = SampleBatches(encoded([1] * 4, [5, 7, 8, 7]), 6, 3)
    assert sorted(places(batches, 0)) == [0, 1, 3]


@pytest.mark.parametrize(
    ("rewards", "more", "sentence"),
    [
        ([1] * 3, {"batch_size": 4}, "for one batch of 4, found 3"),
        ([1] * 9 + [0], {"batch_size": 4, "kind": "balanced"}, "found 9 and 1"),
        ([1, 0] * 9, {"batch_size": 3, "kind": "balanced"}, "even batch_size, found 3"),
        ([1] * 9, {"batch_size": 3, "accumulation": 2}, "must be a multiple of accumulation"),
    ],
)
def test_batches_that_can_not_be_made_are_a_sentence(
    rewards: list, more: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        SampleBatches(encoded(rewards), 6, **more)
