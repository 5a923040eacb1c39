"""The model's three calls: never NaN, in order, batched as one by one, doing nothing is 0, and errors that say what to do."""

from __future__ import annotations

import inspect
import math
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.made_models import calibration_examples, history, model, networks, telemetry
from trainenv.interventions import ActionCodec
from trainenv.types import CLIP_NAMES, Forecast, Intervention, RunHistory, UserError, WorldModel
from trainenv.worldmodel import features
from trainenv.worldmodel.features import ACTION
from trainenv.worldmodel.model import Model

NOTHING = Intervention()
TRIED: Any = {
    "lr_scale": st.sampled_from([1.0, 0.8, 1.1, 1e-300, 1e-6, 100.0, 1e300]),
    "weight_decay_scale": st.sampled_from([1.0, 0.5, 2.0, 1e-300, 1e300]),
    "clip": st.sampled_from([None, *CLIP_NAMES]),
    **dict.fromkeys(("momentum_reset", "data_reorder", "skip_batch"), st.booleans()),
}
interventions = st.builds(Intervention, **TRIED)
ODD = st.sampled_from([0.0, 1e-300, 1e-6, 0.3, 1.0, 7.0, 1e6, 1e300, math.nan, math.inf])
KNOWN = st.sampled_from([0.0, 1e-300, 1e-3, 1.0, 1e6, 1e300])


def numbers(forecast: Forecast) -> list[float]:
    """All of a forecast's numbers."""
    estimates = (forecast.horizon, forecast.annealed, forecast.final, forecast.recovery)
    flat = [number for estimate in estimates for number in astuple(estimate)]
    return [
        *flat,
        *forecast.hazard,
        forecast.divergence,
        forecast.instability,
        forecast.disagreement,
    ]


def mixed(count: int, seed: int = 0) -> list[Intervention | tuple[Intervention, ...]]:
    """Singles and sequences of up to four decisions, some of them doing nothing."""
    rng, codec = np.random.default_rng(seed), ActionCodec()
    sizes = np.array(codec.sizes)
    drawn = [codec.decode(rng.integers(sizes)) for _ in range(4 * count)]
    entries: list[Intervention | tuple[Intervention, ...]] = []
    for place in range(count):
        some = tuple(drawn[4 * place : 4 * place + 1 + place % 4])
        entries.append(some[0] if place % 4 == 0 and place % 3 else some)
    entries[5], entries[6], entries[7] = NOTHING, (NOTHING,) * 3, ()
    return entries


@st.composite
def odd_histories(draw: Any) -> RunHistory:
    """Histories that are allowed, if only just."""
    steps, first = draw(st.integers(16, 24)), draw(st.sampled_from([1, 500, 10**7]))
    names = (
        "loss",
        "grad_norm",
        "grad_norm_clipped",
        "probe_loss",
        "update_ratio",
        "embedding_rms",
        "hypergradient_cosine",
    )
    changes: dict[str, Any] = {
        name: draw(st.lists(ODD, min_size=steps, max_size=steps)) for name in names
    }
    changes["lr"] = draw(st.lists(KNOWN, min_size=steps, max_size=steps))
    changes["loss"][-1], changes["grad_norm"][-1] = draw(KNOWN), draw(KNOWN)
    changes["lr_scale"], changes["weight_decay"] = draw(KNOWN), draw(KNOWN)
    left = draw(st.integers(1, 12))
    return history(
        rows=telemetry(steps, first=first, **changes),
        lrs_ahead=draw(st.lists(KNOWN, min_size=left, max_size=left)),
        base_lr=draw(st.sampled_from([1e-300, 1e-3, 1e300])),
        uniform_loss=draw(st.sampled_from([1e-300, 5.5, 1e300])),
        decision=draw(st.sampled_from([1, 3, 10**6])),
        validation=draw(ODD),
    )


@settings(
    max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate)
)  # shrinking takes minutes
@given(
    odd_histories(),
    st.lists(st.one_of(interventions, st.lists(interventions, max_size=4)), min_size=1, max_size=3),
)
def test_a_forecast_is_never_nan(of: RunHistory, tried: list[Any]) -> None:
    for forecast in model().forecast(of, [*tried, NOTHING]):
        assert all(math.isfinite(number) for number in numbers(forecast))
        for estimate in (forecast.horizon, forecast.annealed, forecast.final, forecast.recovery):
            assert estimate.low <= estimate.median <= estimate.high
            assert estimate.low - 1e-9 <= estimate.mean <= estimate.high + 1e-9
        for chance in (*forecast.hazard, forecast.divergence, forecast.instability):
            assert 0 <= chance <= 1
        assert 0 <= forecast.recovery.low <= forecast.recovery.high <= 4 * of.decision_steps
    root = model().initial_inference([of])
    assert all(
        np.isfinite(part).all() for part in (root.latent, root.reward, root.value, root.logits)
    )


def close(some: Forecast, other: Forecast) -> None:
    assert numbers(some) == pytest.approx(numbers(other), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dynamics", ["mlp", "recurrent"])
def test_many_at_once_are_forecast_as_each_by_itself(dynamics: Any) -> None:
    entries, here = mixed(128), model(dynamics=dynamics)
    together = here.forecast(history(), entries)
    assert len(together) == 128
    for entry, forecast in zip(entries, together):
        close(here.forecast(history(), [entry])[0], forecast)
    assert len({forecast.annealed.median for forecast in together}) > 90


def test_the_order_of_the_list_is_the_order_of_the_forecasts() -> None:
    entries = mixed(40)
    back = model().forecast(history(), entries[::-1])[::-1]
    for one, other in zip(model().forecast(history(), entries), back):
        close(one, other)
    assert model().forecast(history(), []) == []


def test_one_intervention_is_that_and_then_nothing() -> None:
    single = Intervention(lr_scale=0.8, momentum_reset=True)
    one, short, whole = model().forecast(
        history(), [single, [single], (single, NOTHING, NOTHING, NOTHING)]
    )
    close(one, short)
    close(one, whole)
    late = model().forecast(history(), [(NOTHING, single)])[0]
    assert late.annealed != one.annealed


def test_doing_nothing_is_zero_exactly_and_never_abstained_from() -> None:
    for nothing in model().forecast(history(), [NOTHING, (), (NOTHING,), [NOTHING] * 4]):
        for estimate in (nothing.horizon, nothing.annealed, nothing.final):
            assert astuple(estimate) == (0.0, 0.0, 0.0, 0.0)
        assert nothing.disagreement == 0.0
        assert not nothing.abstain
    beside = model().forecast(history(), [Intervention(lr_scale=0.8), NOTHING])[0]
    assert beside.annealed.low < beside.annealed.high


UNKNOWN: dict[str, tuple[Any, str]] = {
    "an action vector": ([np.array([1, 0, 0, 0, 0, 0])], "ActionCodec"),
    "a word": (["lower"], "expected an Intervention, .* at place 0"),
    "none": ([NOTHING, None], "at place 1"),
    "a word among them": ([(NOTHING, "reset")], "expected an Intervention"),
    "no list": (NOTHING, "a list"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_intervention_is_refused_in_a_sentence(name: str) -> None:
    entries, sentence = UNKNOWN[name]
    with pytest.raises(UserError, match=sentence):
        model().forecast(history(), entries)


def test_a_bad_history_is_refused_by_each_call() -> None:
    short = history(8)
    with pytest.raises(UserError, match="at least 16 steps"):
        model().forecast(short, [NOTHING])
    with pytest.raises(UserError, match="at least 16 steps"):
        model().initial_inference([history(), short])


def test_it_abstains_where_the_members_disagree_more_than_where_it_was_calibrated() -> None:
    here = model()
    assert here.calibrations is not None
    entries = mixed(40)
    spreads = sorted(forecast.disagreement for forecast in here.forecast(history(), entries))
    limit = (spreads[20] + spreads[21]) / 2
    strict = Model(here.networks, replace(here.calibrations, disagreement=limit))
    forecasts = strict.forecast(history(), entries)
    assert [forecast.abstain for forecast in forecasts] == [
        forecast.disagreement > limit for forecast in forecasts
    ]
    assert 0 < sum(forecast.abstain for forecast in forecasts) < 40
    assert not any(
        forecast.abstain for forecast in Model(here.networks).forecast(history(), entries)
    )  # nothing to go by


def test_intervals_for_picks_are_those_of_picks() -> None:
    here, tried = model(), [Intervention(lr_scale=0.8), Intervention(clip="zclip")]
    assert here.calibrations is not None
    plain, picked = here.forecast(history(), tried), here.forecast(history(), tried, picks=True)
    for one, other in zip(plain, picked):
        assert one.annealed.median == other.annealed.median
        assert one.annealed != other.annealed
    swapped = replace(here.calibrations, intervals=here.calibrations.picked)
    for one, other in zip(
        Model(here.networks, swapped).forecast(history(), [NOTHING, *tried])[1:], picked
    ):
        close(one, other)


def test_predictions_of_a_data_set_are_the_forecasts_of_its_states() -> None:
    examples, bare = calibration_examples(), Model(networks())
    whole = bare.raw(examples)
    some = np.array([3, 40, 77, 400])
    alone = bare.raw(examples.where(some))
    for name in (
        "horizon",
        "annealed",
        "final",
        "hazard",
        "instability",
        "recovery",
        "disagreement",
    ):
        np.testing.assert_allclose(
            getattr(alone, name), getattr(whole, name)[some], rtol=1e-4, atol=1e-5
        )
    controls = np.flatnonzero(examples.kind == "control")
    assert not whole.annealed[controls, 2].any()  # Δ of doing nothing


def test_it_is_a_world_model_and_calling_it_changes_nothing() -> None:
    here: WorldModel = model()  # checked by mypy
    for name in ("forecast", "initial_inference", "recurrent_inference"):
        promised, kept = (
            inspect.signature(getattr(one, name)).parameters for one in (WorldModel, Model)
        )
        assert [kept[part].kind for part in promised] == [part.kind for part in promised.values()]
    before = {name: value.clone() for name, value in model().networks.state_dict().items()}
    generator = torch.get_rng_state()
    first = here.forecast(history(), mixed(16))
    root = here.initial_inference([history()])
    here.recurrent_inference(root.latent, np.ones((1, 6), dtype=np.int64))
    assert here.forecast(history(), mixed(16)) == first
    assert all(
        torch.equal(before[name], value) for name, value in model().networks.state_dict().items()
    )
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("dynamics", ["mlp", "recurrent"])
def test_a_search_goes_where_the_forecast_goes(dynamics: Any) -> None:
    """Inference along actions is the unroll that forecasts are made of."""
    here, codec = model(dynamics=dynamics), ActionCodec()
    vectors = np.array(
        [[1, 0, 2, 0, 0, 0], [0, 2, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [3, 1, 4, 0, 1, 1]]
    )
    root = here.initial_inference([history(), history(80)])
    nets = here.networks
    states = np.stack([features.state(*features.read(one)) for one in (history(), history(80))])
    actions = torch.tensor([[features.action(codec.decode(vector)) for vector in vectors]] * 2)
    assert actions.shape == (2, 4, len(ACTION))
    unrolled = nets.unroll(nets.represent(torch.tensor(states, dtype=torch.float32)), actions)
    inference = root
    assert root.reward.tolist() == [0.0, 0.0]
    for decision, vector in enumerate(vectors):
        inference = here.recurrent_inference(inference.latent, np.array([vector, vector]))
        latent = unrolled.latents[:, :, decision + 1].transpose(0, 1).flatten(1)
        np.testing.assert_allclose(inference.latent, latent, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            inference.reward,
            nets.expected(unrolled.rewards[:, :, decision]).mean(0),
            rtol=1e-3,
            atol=1e-6,
        )
    assert inference.logits.shape == (2, sum(codec.sizes))
    assert {
        part.dtype for part in (root.latent, inference.reward, inference.value, inference.logits)
    } == {np.dtype(np.float32)}


def test_searching_no_states_gives_none() -> None:
    root = model().initial_inference([])
    after = model().recurrent_inference(root.latent, np.zeros((0, 6), dtype=np.int64))
    assert len(after.latent) == len(after.value) == len(after.logits) == 0


def test_an_action_out_of_range_is_refused() -> None:
    root = model().initial_inference([history()])
    with pytest.raises(UserError, match="lr_scale must be from 0 to 3, found 4"):
        model().recurrent_inference(root.latent, np.array([[4, 0, 0, 0, 0, 0]]))
