"""Learning on: better on what is new, no worse on what is old, honest about intervals, and the pretrained model stays."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.made_examples import LR, quiet, world
from tests.support.made_models import SMALL, calibration_examples, history, model
from trainenv.tools.json_lines import plain
from trainenv.types import Intervention, Rollout, UserError
from trainenv.worldmodel.baselines.scale import unsquash
from trainenv.worldmodel.calibration import ALPHA, Calibrations, strata_of
from trainenv.worldmodel.examples import TARGETS, Examples
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.online import Online, OnlineModel, concatenated, examples_of, read
from trainenv.worldmodel.training import Training, fit

NEVER = Online(refresh=10**6)


def rollout(run: str = "mine", **changes: Any) -> Rollout:
    tried = (Intervention(lr_scale=0.8),)
    return Rollout(
        **{"run": run, "history": history(), "interventions": tried, "annealed": -0.01, **changes}
    )


def shifted(trunks: int, seed: int) -> Examples:
    """Runs of another kind: what the learning rate does there is the other way round, and stronger."""
    made = quiet(world(trunks, seed=seed)[0])
    delta = unsquash(-3.0 * made.actions[:, :, LR].sum(axis=1))
    states = made.states.copy()
    states[:, 0] += 4.0  # and they are told apart by it
    looks = np.repeat(delta[:, None], made.looks.shape[1], axis=1)
    return replace(
        made,
        states=states,
        looks=looks,
        annealed=delta,
        final=delta,
        trunks=tuple(f"n{name}" for name in made.trunks),
    )


def error(of: Model, examples: Examples) -> float:
    some = examples.where(examples.candidate)
    return float(np.abs(of.raw(some).annealed[:, 2] - some.annealed).mean())


def test_it_learns_what_is_new_and_keeps_what_is_old() -> None:
    old, held = quiet(world(40, seed=1)[0]), quiet(world(16, seed=2)[0])
    pretrained = Model(fit(old, Training(epochs=10, batch=128, lr=5e-3, dropout=0.0), SMALL))
    weights = {name: value.clone() for name, value in pretrained.networks.state_dict().items()}
    how = Online(refresh=400, training=Training(epochs=6, batch=128, lr=4e-3, dropout=0.0))
    online = OnlineModel(pretrained, old, how)
    fresh, test = shifted(36, seed=3), shifted(12, seed=4)
    online.learn_examples(fresh.where(np.arange(200)))
    assert online.model.networks is pretrained.networks  # too few yet
    online.learn_examples(fresh.where(np.arange(200, len(fresh))))
    assert error(online.model, test) < 0.8 * error(pretrained, test)
    assert error(online.model, held) < 1.05 * error(pretrained, held)
    assert all(
        torch.equal(weights[name], value)
        for name, value in pretrained.networks.state_dict().items()
    )


def test_rollouts_are_scored_before_they_are_learned() -> None:
    """The misses counted are those of the intervals as they were, and not of a model that has seen the outcome."""
    fresh = shifted(3, seed=5)
    here = Model(model().networks, model().calibrations)
    some = fresh.where(fresh.candidate)
    bounds = here.predict(some).annealed
    missed = ((some.annealed < bounds[:, 0]) | (some.annealed > bounds[:, -1])).sum()
    assert missed > 0
    online = OnlineModel(
        here, calibration_examples(), Online(refresh=1, training=Training(epochs=1, lr=5e-3))
    )
    online.learn_examples(fresh)
    report = online.report()["annealed"]
    assert (report["labels"], report["misses"]) == (len(some), missed)
    assert online.model.networks is not here.networks
    assert online.model.calibrations is not None
    assert here.calibrations is not None
    scores = online.model.calibrations.intervals["annealed"]
    before = here.calibrations.intervals["annealed"]
    joined = scores.how.scores(
        *(np.arcsinh(bound / 0.01) for bound in here.raw(some).annealed[:, [0, -1]].T),
        np.arcsinh(some.annealed / 0.01),
    )
    np.testing.assert_allclose(scores.low[len(before.low) :], joined[0])


def test_misses_lower_the_level_and_hits_raise_it() -> None:
    here = model()
    assert here.calibrations is not None
    missing, hitting = (
        OnlineModel(here, calibration_examples(), NEVER),
        OnlineModel(here, calibration_examples(), NEVER),
    )
    middle = here.forecast(history(), [Intervention(lr_scale=0.8)])[0].annealed.median
    missing.learn([rollout(annealed=50.0)] * 3)
    hitting.learn([rollout(annealed=middle)] * 3)
    for online, way in ((missing, -1), (hitting, 1)):
        calibrations = online.model.calibrations
        assert calibrations is not None
        assert way * (calibrations.alpha["annealed"] - ALPHA) > 0
        assert calibrations.alpha["horizon"] == ALPHA  # nothing was measured there
    assert missing.report()["annealed"]["misses"] == 3
    assert hitting.report()["annealed"]["misses"] == 0
    wide, narrow = (
        one.model.forecast(history(), [Intervention(lr_scale=0.8)])[0].annealed
        for one in (missing, hitting)
    )
    assert wide.high - wide.low > narrow.high - narrow.low


def test_a_run_goes_on_being_one() -> None:
    online = OnlineModel(model(), calibration_examples(), NEVER)
    for _ in range(3):
        online.learn([rollout("a"), rollout("b")])
    online.learn([rollout("a", looks=(0.0,) * 8)])
    before, after = model().calibrations, online.model.calibrations
    assert before is not None
    assert after is not None
    old, new = before.intervals["annealed"], after.intervals["annealed"]
    added = new.trunks[len(old.trunks) :].tolist()
    assert len(set(added)) == 2
    assert added == [added[0], added[1]] * 3 + [added[0]]
    assert set(added).isdisjoint(old.trunks.tolist())
    horizon = after.intervals["horizon"]
    assert len(horizon.trunks) == len(before.intervals["horizon"].trunks) + 1


def test_only_the_newest_are_kept_and_their_states_with_them() -> None:
    online = OnlineModel(model(), calibration_examples(), replace(NEVER, keep=5))
    for place in range(9):
        online.learn([rollout(f"r{place}", annealed=0.001 * place)])
    assert online._kept is not None
    assert online._kept.annealed.tolist() == pytest.approx([0.004, 0.005, 0.006, 0.007, 0.008])
    assert len(online._kept.states) == 5


def test_a_refresh_from_rollouts_that_measured_little_is_sound() -> None:
    online = OnlineModel(
        model(), calibration_examples(), Online(refresh=2, training=Training(epochs=1))
    )
    online.learn(
        [
            rollout(),
            rollout("other", looks=(0.1, math.nan, 0.2), annealed=math.nan, diverged=2, fired=True),
        ]
    )
    weights = online.model.networks.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert online.model.forecast(history(), [Intervention(lr_scale=0.8)])[0].annealed.low < 0
    assert not torch.equal(
        weights["effect.second.weight"], model().networks.state_dict()["effect.second.weight"]
    )


def test_a_rollout_is_a_branch_of_its_history() -> None:
    one = rollout(looks=(0.1, 0.2), final=0.3, diverged=1, fired=True)
    made = examples_of(read([rollout("b"), one, rollout("b")]))
    assert made.trunks == ("b", "mine")
    assert made.trunk.tolist() == [0, 1, 0]
    assert made.candidate.all()
    assert made.looks[1, :2].tolist() == [0.1, 0.2]
    assert np.isnan(made.looks[1, 2:]).all()
    assert (made.annealed[1], made.final[1], made.diverged[1], made.fired[1]) == (
        -0.01,
        0.3,
        1,
        True,
    )
    assert made.actions[1, 0, LR] == pytest.approx(math.log(0.8))
    assert made.law[1].any()
    raw = Model(model().networks)
    by_forecast = raw.forecast(history(), [one.interventions])[0]
    assert raw.raw(made).annealed[1, 2] == pytest.approx(by_forecast.annealed.median, rel=1e-4)


def test_parts_are_put_together_with_their_own_states() -> None:
    first, second = world(3, seed=1)[0], world(4, seed=2)[0]
    both = concatenated([first, second])
    assert both.trunks == second.trunks  # of the same names
    np.testing.assert_array_equal(
        both.states[both.snapshot[len(first) :]], second.states[second.snapshot]
    )
    assert [both.trunks[t] for t in both.trunk] == [
        part.trunks[t] for part in (first, second) for t in part.trunk
    ]
    assert strata_of(both.states[both.snapshot], both.actions[..., 0].sum(axis=1)).shape == (
        len(both),
    )


def test_without_calibrations_or_rollouts_there_is_nothing_to_move() -> None:
    bare = OnlineModel(Model(model().networks), calibration_examples(), NEVER)
    bare.learn([rollout()])
    assert bare.model.calibrations is None
    bare.learn([])
    assert set(bare.report()) == set(TARGETS)
    assert Calibrations.from_state(model().calibrations.state).alpha == dict.fromkeys(
        TARGETS, ALPHA
    )  # type: ignore[union-attr]


NOTHING = Intervention()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "five decisions": (
        {"interventions": (NOTHING,) * 5},
        "at most 4 interventions and 8 looks, found 5 and 0",
    ),
    "nine looks": ({"looks": (0.0,) * 9}, "at most 4 interventions and 8 looks, found 1 and 9"),
    "nothing measured": (
        {"annealed": math.nan, "looks": (math.nan,)},
        "needs a measured Δ, found none",
    ),
    "infinite": ({"annealed": math.inf}, "needs a measured Δ, found none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_rollout_is_refused(name: str) -> None:
    changes, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence):
        rollout(**changes)


def test_settings_and_histories_that_are_none_are_refused() -> None:
    for name in ("refresh", "keep"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, found 0"):
            Online(**{name: 0})
    online = OnlineModel(model(), calibration_examples(), NEVER)
    with pytest.raises(UserError, match="at least 16 steps"):
        online.learn([rollout(history=history(8))])
    assert online.model is model()


def through_json(state: Any) -> Any:
    """As it is in a checkpoint: strict JSON, where a number that is not finite is null."""
    return json.loads(json.dumps(plain(state), allow_nan=False))


def same(one: OnlineModel, two: OnlineModel) -> bool:
    weights, others = one.model.networks.state_dict(), two.model.networks.state_dict()
    asked: list[Any] = [
        Intervention(),
        Intervention(lr_scale=0.8),
        (Intervention(), Intervention(lr_scale=1.1)),
    ]
    alike = all(torch.equal(weights[name], others[name]) for name in weights)
    return alike and one.model.forecast(history(), asked) == two.model.forecast(history(), asked)


def test_what_was_learned_comes_back_to_the_bit_and_goes_on_alike() -> None:
    how = Online(refresh=3, training=Training(epochs=1))
    online, other = (OnlineModel(model(), calibration_examples(), how) for _ in range(2))
    online.learn([rollout("a"), rollout("b", annealed=0.02)])
    online.learn(
        [
            rollout("a", looks=(0.1, math.nan, 0.2), annealed=math.nan, diverged=2),
            rollout("c", final=0.3),
        ]
    )
    assert online.model.networks is not model().networks  # refreshed in between
    state = through_json(online.state_dict())
    other.learn([rollout("z", annealed=9.0)] * 4)  # is forgotten
    other.load_state_dict(state)
    assert same(online, other)
    assert other.report() == online.report()
    assert through_json(other.state_dict()) == state
    for one in (online, other):
        one.learn([rollout("b", annealed=-0.03), rollout("d"), rollout("a")])
    assert same(online, other)
    assert not same(online, OnlineModel(model(), calibration_examples(), how))


def test_what_another_had_learned_costs_nothing_again() -> None:
    how = Online(refresh=1, training=Training(epochs=1))
    online, other = (OnlineModel(model(), calibration_examples(), how) for _ in range(2))
    online.learn([rollout()])
    assert online.flops > 0
    other.load_state_dict(online.state_dict())
    assert other.flops == 0
    other.learn([rollout()])
    assert other.flops > 0


def test_nothing_learned_is_a_state_too() -> None:
    online = OnlineModel(model(), calibration_examples(), NEVER)
    assert online.state_dict() == {"learned": []}
    online.learn([rollout()])
    online.load_state_dict({"learned": []})
    assert online.model is model()
