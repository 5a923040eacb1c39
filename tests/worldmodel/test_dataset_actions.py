"""Randomised interventions: what is logged is the chance that counting finds, and nothing illegal is tried."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.types import Intervention, UserError
from trainenv.worldmodel.dataset import Randomised
from trainenv.worldmodel.dataset.actions import spread

ALL = ActionCodec(
    InterventionConfig(allow_spam=True, allow_data_reorder=True, allow_skip_batch=True)
)


def state(**values: Any) -> Any:
    return SimpleNamespace(
        **{
            "lr_scale": 1.0,
            "weight_decay_scale": 1.0,
            "clip": "zclip",
            "flagged_ahead": (),
            **values,
        }
    )


STATES = [
    state(),
    state(lr_scale=9.9),
    state(lr_scale=0.011, weight_decay_scale=8.0),
    state(clip="spam", flagged_ahead=(3, 4)),
]


@pytest.mark.parametrize("codec", [ALL, ActionCodec()], ids=["all", "required"])
@pytest.mark.parametrize("where", STATES, ids=range(4))
def test_chances_add_up_and_only_legal_actions_have_one(codec: ActionCodec, where: Any) -> None:
    policy = Randomised()
    actions, chances = policy.table(codec, where)
    assert math.isclose(chances.sum() + policy.rate, 1.0)
    assert len({tuple(action) for action in actions.tolist()}) == len(actions)
    assert all(codec.legal(action, where)[1] == () for action in actions)
    assert {tuple(a) for a in actions.tolist()} == {
        tuple(codec.encode(i).tolist()) for i in codec.all_legal(where)
    }


@pytest.mark.parametrize("where", STATES[::3], ids=("usual", "flagged"))
def test_the_logged_propensity_is_the_frequency(where: Any) -> None:
    policy, rng, count = Randomised(), np.random.default_rng(0), 3000
    draws = [policy.draw(ALL, where, u) for u in rng.random(count)]
    seen = Counter(draw.intervention for draw in draws if not draw.wide)
    logged = {draw.intervention: draw.propensity for draw in draws if not draw.wide}
    for intervention, times in seen.items():
        p = logged[intervention]
        assert abs(times / count - p) < 5 * math.sqrt(p * (1 - p) / count)
    actions, chances = policy.table(ALL, where)
    missed = sum(
        p for action, p in zip(actions, chances) if ALL.decode(action.tolist()) not in seen
    )
    assert missed < 0.05


def test_wide_factors_are_log_uniform_within_the_bounds_and_their_density_integrates_to_their_share() -> (
    None
):
    policy, where = (
        Randomised(nothing=0, rate=1, part=0, joint=0, lr_factors=(0.1, 4.0)),
        state(lr_scale=5.0),
    )
    draws = [policy.draw(ALL, where, u) for u in np.random.default_rng(1).random(4000)]
    factors = np.array([draw.intervention.lr_scale for draw in draws])
    assert all(draw.wide for draw in draws)
    assert 0.1 <= factors.min() < 0.102
    assert 1.95 < factors.max() <= 2.0  # lr_scale may be 10 at most
    assert draws[0].propensity == pytest.approx(1 / math.log(20))
    counts, _ = np.histogram(np.log(factors), bins=10, range=(math.log(0.1), math.log(2)))
    assert counts.min() > 300


def test_where_a_family_has_nothing_legal_the_others_share_its_weight() -> None:
    # The multiplier is at its upper bound, and the policy knows larger factors only.
    policy = Randomised(nothing=1, rate=1, part=0, joint=0, lr_factors=(2.0, 4.0))
    actions, chances = policy.table(ALL, state(lr_scale=10.0))
    assert actions.tolist() == [[0] * 6]
    assert chances.tolist() == [1.0]
    assert policy.draw(ALL, state(lr_scale=10.0), 0.99).intervention == Intervention()


def test_spread_numbers_are_uniform_each_and_even_together() -> None:
    numbers = np.stack(
        [spread(np.random.default_rng(seed), 4, 3) for seed in range(2000)]
    )  # [seeds, 4, 3]
    assert np.array_equal(
        np.unique(np.floor(4 * np.sort(numbers, axis=1)), axis=0)[0, :, 0], [0, 1, 2, 3]
    )
    assert np.allclose(numbers.mean(axis=0), 0.5, atol=0.03)
    assert np.allclose(numbers.std(axis=0), 1 / math.sqrt(12), atol=0.02)
    assert spread(np.random.default_rng(0), 0, 4).shape == (0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nothing": -1.0},
        {"nothing": 0, "rate": 0, "part": 0, "joint": 0},
        {"lr_factors": (2.0, 1.0)},
        {"rate": math.nan},
    ],
)
def test_a_policy_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="found"):
        Randomised(**wrong)
