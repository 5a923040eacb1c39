"""Training: the same for a seed, learns what is there to learn, and leaves what it started from alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.made_examples import SENSITIVE, quiet, world
from tests.support.made_models import SMALL, networks
from trainenv.types import LOOKS, UserError
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.networks import ACTION_SIZES, REWARD_SCALE, Networks, rescale
from trainenv.worldmodel.training import Training, _table, _tensors, fit, improved

QUICK = Training(epochs=2, batch=128, lr=5e-3)


def error(nets: Networks, examples: Examples) -> float:
    """Mean absolute error of the median of Δ at the horizon, over candidates, in nats."""
    some = examples.where(examples.candidate)
    return float(np.abs(Model(nets).raw(some).horizon[:, 2] - some.horizon).mean())


@pytest.fixture(scope="module")
def data() -> tuple[Examples, Examples]:
    return quiet(world(50, seed=1, tried=12)[0]), quiet(world(20, seed=2)[0])


def test_it_learns_an_effect_and_nothing_from_shuffled_actions(
    data: tuple[Examples, Examples],
) -> None:
    train, test = data
    how, losses = Training(epochs=8, batch=128, lr=5e-3, dropout=0.0), []
    learned = error(fit(train, how, SMALL, watch=lambda epoch, loss: losses.append(loss)), test)
    shuffled = error(fit(train.shuffled(np.random.default_rng(0)), how, SMALL), test)
    zero = float(np.abs(test.horizon[test.candidate]).mean())
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    assert learned < 0.8 * zero
    assert shuffled > 0.92 * zero


def test_a_seed_says_it_all(data: tuple[Examples, Examples]) -> None:
    train = data[0].where(np.arange(200))
    torch.manual_seed(1)
    generator = torch.get_rng_state()
    first, same = fit(train, QUICK, SMALL), fit(train, QUICK, SMALL)
    assert torch.equal(generator, torch.get_rng_state())
    torch.manual_seed(2)
    other, third = fit(train, replace(QUICK, seed=1), SMALL), fit(train, QUICK, SMALL)
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name])
        assert torch.equal(weights, third.state_dict()[name])
    assert not torch.equal(first.effect.second.weight, other.effect.second.weight)


def test_where_it_starts_from_stays_as_it_was(data: tuple[Examples, Examples]) -> None:
    """Also from the networks of a model, which are frozen."""
    frozen = Model(networks()).networks
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    on = fit(data[0].where(np.arange(200)), QUICK, start=frozen)
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not torch.equal(on.effect.second.weight, before["effect.second.weight"])
    assert torch.equal(on.mean, before["mean"])  # the standardisation is kept


def test_what_was_not_measured_does_not_spoil_the_weights(data: tuple[Examples, Examples]) -> None:
    train = data[0].where(np.arange(200))
    nan = {
        name: np.full_like(getattr(train, name), math.nan)
        for name in ("after", "final", "fall", "to_end", "recovery")
    }
    looks = train.looks.copy()
    looks[:, :-1] = math.nan
    bare = replace(train, **nan, looks=looks, recovered=np.zeros(len(train), dtype=bool))
    for examples in (bare, replace(bare, looks=np.full_like(looks, math.nan))):
        nets = fit(examples, replace(QUICK, epochs=1), SMALL)
        assert all(bool(torch.isfinite(value).all()) for value in nets.state_dict().values())


def test_times_to_recover_as_places() -> None:
    base = world(1)[0].where(np.arange(6))
    made = replace(
        base,
        recovery=np.array([0.0, 0.5, 2.0, 4.0, 4.0, math.nan]),
        recovered=np.array([True, True, True, True, False, False]),
    )
    found = _tensors(made, 1, torch.Generator())
    assert found.recovery.tolist() == [0, 1, 4, LOOKS, LOOKS, -1]
    assert found.recovered.tolist() == [True] * 4 + [False] * 2


def test_standardised_features_have_mean_0_and_deviation_1(data: tuple[Examples, Examples]) -> None:
    train = data[0].where(np.arange(300))
    nets = fit(train, replace(QUICK, epochs=1), SMALL)
    used = torch.tensor(train.states[np.unique(train.snapshot)], dtype=torch.float32)
    z = ((used - nets.mean) / nets.deviation)[:, SENSITIVE]
    assert float(z.mean()) == pytest.approx(0, abs=1e-4)
    assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-4)
    never = STATE.index("flagged")  # never measured in this world
    assert (float(nets.mean[never]), float(nets.deviation[never])) == (0.0, 1.0)


def test_the_improved_policy_goes_for_the_better_action() -> None:
    """Networks in which an action's learning rate, and nothing else, decides the reward: ×0.8 is best, ×1.1 worst."""
    nets = crafted()
    policy = improved(
        nets, torch.randn(3, len(STATE), generator=torch.Generator().manual_seed(0)), *_table()
    )
    assert policy.shape == (3, sum(ACTION_SIZES))
    torch.testing.assert_close(policy.split(ACTION_SIZES, dim=-1)[0].sum(-1), torch.ones(3))
    rate, decay = policy[:, :4], policy[:, 4:7]
    assert (rate[:, 1] > 0.6).all()  # of ×1, ×0.8, ×0.9, ×1.1
    assert (rate.argmin(dim=1) == 3).all()
    torch.testing.assert_close(
        decay, torch.full((3, 3), 1 / 3), rtol=0, atol=1e-3
    )  # says nothing, so nothing is learned


class _Crafted(Networks):
    """Its latents hold the learning rate's factor; its reward is −ln of it, its value and policy are flat."""

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return (action[..., :1] + 0 * latent).clone()

    def rewards(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        wanted = rescale(-0.01 * after[..., :1] * REWARD_SCALE)
        return -20 * (self.bins - wanted).square()

    def assess(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(*latent.shape[:-1], len(self.bins)), torch.zeros(
            *latent.shape[:-1], sum(ACTION_SIZES)
        )


def crafted() -> Networks:
    with torch.random.fork_rng(devices=[]):
        return _Crafted(SMALL).eval()


def test_nothing_to_learn_from_is_refused() -> None:
    controls = world(2)[0]
    with pytest.raises(UserError, match="branches that tried something to learn from, found none"):
        fit(controls.where(~controls.candidate), QUICK, SMALL)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 0}, {"reanalyse": 0}, {"lr": 0.0}, {"dropout": 1.0}]
)
def test_hyperparameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be"):
        Training(**wrong)  # type: ignore[arg-type]
