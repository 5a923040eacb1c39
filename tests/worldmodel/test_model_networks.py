"""Networks: what holds by construction, whatever the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.made_models import networks
from trainenv.types import UserError
from trainenv.worldmodel.calibration import nats
from trainenv.worldmodel.features import ACTION, STATE
from trainenv.worldmodel.networks import (
    BINS,
    REWARD_SCALE,
    Architecture,
    Networks,
    rescale,
    to_units,
    two_hot,
    unscale,
)

DYNAMICS = pytest.mark.parametrize("dynamics", ["mlp", "recurrent"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def forecast(nets: Networks, states: Tensor, actions: Tensor, law: Tensor) -> Any:
    start = nets.represent(states)
    nothing = nets.unroll(start, torch.zeros_like(actions)).latents[:, :, -1]
    return nets.forecast(start, nets.unroll(start, actions).latents[:, :, -1], nothing, law)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.floats(-1e4, 1e4), st.floats(-1e-2, 1e-2)))
def test_rescaling_there_and_back(x: float) -> None:
    there = torch.tensor(x, dtype=torch.float64)
    assert float(unscale(rescale(there))) == pytest.approx(x, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("nats", [0.0, 1e-4, -1e-4, 3e-3, 0.05, -0.4, 0.9, -1.1])
def test_two_bins_tell_a_reward(nats: float) -> None:
    """A reward of 1e-4 nats is told from none: what a search compares is as small."""
    weights = two_hot(torch.tensor([nats]), BINS)
    assert weights.shape == (1, len(BINS))
    assert float(weights.sum()) == pytest.approx(1.0)
    assert int((weights > 0).sum()) <= 2
    told = unscale((weights * BINS).sum(-1)) / REWARD_SCALE
    assert float(told) == pytest.approx(nats, rel=2e-3, abs=2e-6)
    logits = torch.log(weights.clamp(min=1e-30)).expand(3, 1, -1)
    torch.testing.assert_close(networks().expected(logits), told.expand(3, 1), rtol=1e-3, atol=2e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 1e6))
def test_a_reward_beyond_all_bins_is_in_the_last(nats: float) -> None:
    weights = two_hot(torch.tensor(nats), BINS)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(weights.min()) >= 0
    if abs(nats) > 2:
        assert float(weights[-1 if nats > 0 else 0]) == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(-5, 5))
def test_units_there_and_back(delta: float) -> None:
    there = torch.tensor(delta, dtype=torch.float64)
    assert float(nats(to_units(there).numpy())) == pytest.approx(delta, rel=1e-9, abs=1e-15)


@DYNAMICS
def test_doing_nothing_is_forecast_to_change_nothing(dynamics: Any) -> None:
    nets, states = networks(dynamics=dynamics), drawn(6, len(STATE))
    heads = forecast(nets, states, torch.zeros(6, 4, len(ACTION)), torch.zeros(6, 3))
    assert not heads.quantiles[..., 2].any()
    assert not heads.looks.any()
    tried = forecast(nets, states, drawn(6, 4, len(ACTION), seed=1), torch.zeros(6, 3))
    assert (tried.quantiles[..., 2].abs() > 1e-3).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 30))
def test_quantiles_never_cross(seed: int, size: float) -> None:
    heads = forecast(
        networks(),
        size * drawn(8, len(STATE), seed=seed),
        size * drawn(8, 4, len(ACTION), seed=seed),
        torch.zeros(8, 3),
    )
    assert (heads.quantiles.diff(dim=-1) > 0).all()


@DYNAMICS
def test_members_know_nothing_of_each_other(dynamics: Any) -> None:
    nets, states, actions, law = (
        networks(dynamics=dynamics),
        drawn(5, len(STATE)),
        drawn(5, 4, len(ACTION)),
        drawn(5, 3),
    )
    before = forecast(nets, states, actions, law)
    other = networks(dynamics=dynamics)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter[1] = parameter[1].flip(-1)  # its outputs the other way round
            parameter[1] += 0.1
    after = forecast(other, states, actions, law)
    for one, two in zip(before, after):
        torch.testing.assert_close(one[[0, 2]], two[[0, 2]])
        assert not torch.allclose(one[1], two[1])


@DYNAMICS
def test_many_sequences_of_one_state_share_its_latent(dynamics: Any) -> None:
    nets, state, actions, law = (
        networks(dynamics=dynamics),
        drawn(1, len(STATE)),
        drawn(7, 4, len(ACTION)),
        drawn(7, 3),
    )
    expanded = forecast(nets, state.expand(7, -1), actions, law)
    start = nets.represent(state)  # (M, 1, W)
    nothing = nets.unroll(start, torch.zeros(1, 4, len(ACTION))).latents[:, :, -1]
    end = nets.unroll(start.expand(-1, 7, -1), actions).latents[:, :, -1]
    for shared, whole in zip(nets.forecast(start, end, nothing, law), expanded):
        torch.testing.assert_close(shared.expand_as(whole), whole, rtol=1e-4, atol=1e-5)


@DYNAMICS
def test_an_unroll_is_steps_one_after_the_other(dynamics: Any) -> None:
    nets, actions = networks(dynamics=dynamics), drawn(2, 4, len(ACTION))
    latent = nets.represent(drawn(2, len(STATE)))
    unrolled = nets.unroll(latent, actions)
    for decision in range(4):
        after = nets.step(latent, actions[:, decision])
        torch.testing.assert_close(unrolled.latents[:, :, decision + 1], after)
        torch.testing.assert_close(unrolled.rewards[:, :, decision], nets.rewards(latent, after))
        latent = after
    torch.testing.assert_close(
        latent.mean(-1), torch.zeros(3, 2), rtol=0, atol=1e-5
    )  # latents are normalised


def test_features_are_standardised_and_what_is_missing_is_average() -> None:
    nets = networks()
    nets.standardise(torch.full((len(STATE),), 2.0), torch.full((len(STATE),), 4.0))
    assert nets.standard(torch.full((1, len(STATE)), 4.0)).unique().tolist() == [0.5]
    assert nets.standard(torch.full((1, len(STATE)), 1e9)).unique().tolist() == [5.0]
    missing = torch.full((1, len(STATE)), torch.nan)
    torch.testing.assert_close(
        nets.represent(missing), nets.represent(torch.full((1, len(STATE)), 2.0))
    )


def test_the_law_opens_the_gate() -> None:
    """Through it the law moves the median the way it points, by at most its own size."""
    nets, states, actions = networks(), drawn(4, len(STATE)), torch.zeros(4, 4, len(ACTION))
    with torch.no_grad():
        nets.effect.own.weight.zero_()  # what the law says as an input
    heads = forecast(nets, states, actions, torch.full((4, 3), 2.0))
    median = heads.quantiles[..., 2]
    assert ((median > 0) & (median < 2.0)).all()


@pytest.mark.parametrize(
    "wrong", [{"members": 0}, {"width": 0}, {"hidden": -1}, {"dynamics": "linear"}]
)
def test_sizes_that_make_no_network_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        Architecture(**wrong)
