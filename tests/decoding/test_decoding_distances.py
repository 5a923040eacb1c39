"""Distances of decoded text to the target's, measured along generated text."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.tables import constant, table
from trainenv.decoding.contract import GREEDY, Sampling, Settings
from trainenv.decoding.decoder import Decoder
from trainenv.decoding.distances import (
    measure,
    overlap,
    target_law,
    text_law,
    total_variation,
)
from trainenv.decoding.drafters import CausalDrafter
from trainenv.decoding.rules import Exact, Lossy, Pipelined
from trainenv.types import UserError

SETTINGS = Settings(k=3, fallback_threshold=0.3, rollback_threshold=2.0)


def decoder(target, draft, rule, settings=SETTINGS, how=None):
    return Decoder(
        target=target,
        drafter=CausalDrafter(model=draft, cached=False),
        rule=rule,
        settings=settings,
        sampling=how or Sampling(),
        cached=False,
        dtype=torch.float64,
    )


def test_overlap_is_one_less_the_distance():
    first = torch.tensor([0.5, 0.3, 0.2])
    second = torch.tensor([0.1, 0.3, 0.6])
    assert float(total_variation(first, second)) == pytest.approx(0.4)
    assert float(overlap(first, second)) == pytest.approx(0.6)


def test_exact_rule_has_no_distance():
    found = measure(
        decoder(table(5, seed=1), table(5, seed=2), Exact()), [[0, 1]] * 8, max_new_tokens=30
    )
    assert found.per_token < 1e-12
    assert 0 < found.overlap < 1


def test_distance_a_token_is_known_where_text_does_not_matter():
    # Nothing falls back or rolls back: drafted tokens have the law of the draft, each bonus token
    # that of the target, so 3 of 4 places have distance 0.3.
    target = constant([0.6, 0.3, 0.1])
    draft = constant([0.3, 0.6, 0.1])
    settings = Settings(k=3, fallback_threshold=0.0, rollback_threshold=math.inf)
    found = measure(decoder(target, draft, Lossy(), settings), [[0]] * 4, max_new_tokens=40)
    assert found.per_token == pytest.approx(0.75 * 0.3, rel=1e-9)
    assert found.overlap == pytest.approx(0.7, rel=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_distance_bounds_that_of_whole_texts():
    target = table(4, seed=3)
    draft = table(4, seed=4)
    length = 3
    found = measure(decoder(target, draft, Lossy()), [[0, 1]] * 400, max_new_tokens=length, seed=5)
    law = text_law(
        target.after([0, 1]),
        draft.after([0, 1]),
        rule=Lossy(),
        settings=SETTINGS,
        length=length,
    )
    whole = float(
        total_variation(law.flatten(), target_law(target.after([0, 1]), length).flatten())
    )
    assert whole > 0.02
    assert length * (found.per_token + 4 * found.error) > whole
    # and it is not much larger
    assert length * (found.per_token - 4 * found.error) < 3 * whole


def test_standard_error_covers_the_spread_of_seeds():
    made = decoder(table(4, seed=3), table(4, seed=4), Lossy())
    found = [measure(made, [[0, 1]] * 16, max_new_tokens=8, seed=seed) for seed in range(12)]
    spread = torch.tensor([one.per_token for one in found]).std()
    error = sum(one.error for one in found) / len(found)
    assert 0.5 * error < float(spread) < 2 * error
    assert math.isnan(measure(made, [[0, 1]], max_new_tokens=8).error)


def test_greedy_target_has_its_own_distance():
    found = measure(
        decoder(table(5, seed=1), table(5, seed=2), Lossy(), how=GREEDY),
        [[0, 1], [2, 2]],
        max_new_tokens=20,
    )
    assert 0 < found.per_token < 1
    strict = Settings(k=3, fallback_threshold=0.3, rollback_threshold=0.0)
    none = measure(
        decoder(table(5, seed=1), table(5, seed=2), Lossy(), strict, GREEDY),
        [[0, 1], [2, 2]],
        max_new_tokens=20,
    )
    assert none.per_token < 1e-12


def test_pipelined_rule_is_not_measured():
    with pytest.raises(UserError, match="does not draft ahead"):
        measure(decoder(table(3, seed=1), table(3, seed=2), Pipelined()), [[0]], max_new_tokens=3)
