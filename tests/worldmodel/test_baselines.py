"""Each baseline finds what it can know of a world with a known truth, and keeps the contract."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.support.made_examples import LR, RESET, SENSITIVE, examples, squash, world
from trainenv.types import DECISIONS, UserError
from trainenv.worldmodel.baselines import BASELINES, NAMES, Baseline, Fitted, Trees, make
from trainenv.worldmodel.baselines.folds import folds
from trainenv.worldmodel.baselines.groups import groups
from trainenv.worldmodel.baselines.learning_curve import reconstructed
from trainenv.worldmodel.baselines.points import offsets
from trainenv.worldmodel.baselines.risk import Rates, hazards, shares
from trainenv.worldmodel.baselines.scale import outcomes, unsquash
from trainenv.worldmodel.evaluation import evaluate
from trainenv.worldmodel.examples import LEVELS, TARGETS, Examples, Predictions
from trainenv.worldmodel.features import ACTION, STATE

QUICK = {"iterations": 25, "learning_rate": 0.2, "patience": 5}
TRAIN, TEST = 24, 6


@cache
def parts() -> tuple[Examples, Examples]:
    made, _ = world(TRAIN + TEST, seed=11)
    return made.among(made.trunks[:TRAIN]), made.among(made.trunks[TRAIN:])


def quick(name: str) -> Baseline:
    """With small trees."""
    if name == "trees":
        return make(name, **QUICK)
    return make(name, of=Trees(**QUICK)) if name.endswith("trees") else make(name)  # type: ignore[arg-type]


@cache
def fitted(name: str) -> Fitted:
    return quick(name).fit(parts()[0])


@cache
def predicted(name: str) -> Predictions:
    return fitted(name).predict(parts()[1])


@cache
def report(name: str) -> dict[str, Any]:
    return evaluate(parts()[1], predicted(name), resamples=10)


def mae(name: str, target: str = "horizon") -> float:
    return float(report(name)[target]["all"]["mae"]["value"])


# ── the contract ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_whole(name: str) -> None:
    told, (_, test) = predicted(name), parts()
    still = ~test.actions.any(axis=(1, 2))
    assert still.sum() == 5 * 2 * TEST
    for target in TARGETS:
        quantiles = getattr(told, target)
        assert quantiles.shape == (len(test), 5)
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=1) >= 0).all()
        assert not quantiles[still].any()
        assert (quantiles[~still, -1] > quantiles[~still, 0]).all()
    assert told.hazard.shape == (len(test), 4)
    assert told.recovery.shape == (len(test), 5)
    assert (np.diff(told.recovery, axis=1) >= 0).all()
    for chances in (told.hazard, told.instability, told.recovery / 4):
        assert np.isfinite(chances).all()
        assert chances.min() >= 0
        assert chances.max() <= 1
    assert told.disagreement.tolist() == [0] * len(test)


@pytest.mark.parametrize("name", ["mean-by-action", "law-and-spikes", "ridge", "shuffled-trees"])
def test_fits_are_reproducible(name: str) -> None:
    train, test = parts()
    some = train.among(train.trunks[:5])
    one, two = (quick(name).fit(some).predict(test) for _ in range(2))
    np.testing.assert_array_equal(one.annealed, two.annealed)
    np.testing.assert_array_equal(one.hazard, two.hazard)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_look_at_no_outcome(name: str) -> None:
    _, test = parts()
    n = len(test)
    hidden = replace(
        test, looks=np.zeros((n, 8)), annealed=np.zeros(n), final=np.zeros(n), diverged=np.full(n, -1),
        fired=np.zeros(n, dtype=bool), recovery=np.zeros(n), after=np.zeros_like(test.after),
    )  # fmt: skip
    again = fitted(name).predict(hidden)
    for field in ("horizon", "annealed", "final", "hazard", "instability", "recovery"):
        np.testing.assert_array_equal(getattr(again, field), getattr(predicted(name), field))


@pytest.mark.parametrize("name", ["mean-by-action", "law-and-spikes", "ridge", "trees"])
def test_branches_are_predicted_one_by_one(name: str) -> None:
    _, test = parts()
    rows = np.array([7, 30, 2])
    few = fitted(name).predict(test.where(rows))
    np.testing.assert_allclose(few.horizon, predicted(name).horizon[rows], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_trunk_is_too_few(name: str) -> None:
    train, _ = parts()
    with pytest.raises(UserError, match="at least 2 trunks, found 1"):
        quick(name).fit(train.among(train.trunks[:1]))


@pytest.mark.parametrize("name", ["nothing", "pooled-multi-power", "ridge", "trees"])
def test_a_set_without_an_end_is_learned_from(name: str) -> None:
    train, test = parts()
    some = train.among(train.trunks[:5])
    endless = quick(name).fit(replace(some, final=np.full(len(some), np.nan))).predict(test)
    assert np.isfinite(endless.final).all()


def test_names() -> None:
    assert make("ridge", penalties=(1.0,)) != BASELINES["ridge"]
    with pytest.raises(UserError, match="did you mean 'ridge'"):
        make("rigde")
    with pytest.raises(UserError, match="no hyperparameter 'penalty'; did you mean 'penalties'"):
        make("ridge", penalty=1)
    for name, wrong in [
        ("ridge", {"penalties": ()}),
        ("ridge", {"penalties": (0.0,)}),
        ("trees", {"leaves": 1}),
        ("trees", {"learning_rate": 0.0}),
        ("mean-by-action", {"weight": 0.0}),
        ("law-and-spikes", {"threshold": 0.0}),
        ("pow3", {"forecaster": "pow5"}),
    ]:
        with pytest.raises(UserError, match="must be"):
            make(name, **wrong)


def test_without_scikit_learn_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'trainenv\[benchmarks\]'"):
        make("trees").fit(parts()[0])


# ── what each knows ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_those_that_know_nothing_of_actions_say_no_difference() -> None:
    _, test = parts()
    for name in ("nothing", "last-value", "pow3", "exponential", "domhan"):
        assert not predicted(name).horizon[:, 2].any()
        assert mae(name) == pytest.approx(np.abs(test.horizon[test.candidate]).mean())
        assert report(name)["regret"]["final"]["annealed"]["of_nothing"]["value"] == 1


def test_the_more_is_known_the_better() -> None:
    assert mae("mean-by-action") < mae(
        "nothing"
    )  # resets hurt everywhere; a rate's effect averages out
    for best in ("ridge", "trees"):
        assert mae(best) < 0.75 * mae("mean-by-action")
        for less in ("blind", "shuffled"):
            assert mae(best) < 0.85 * mae(f"{less}-{best}")
    assert report("ridge")["horizon"]["ranking"]["spearman"]["value"] > 0.6
    assert (
        report("trees")["divergence"]["auprc"]["value"]
        > 2 * report("nothing")["divergence"]["rate"]["value"]
    )
    assert (
        report("trees")["divergence"]["brier"]["value"]
        < report("nothing")["divergence"]["brier"]["value"]
    )


def test_intervals_of_held_out_errors_cover() -> None:
    fresh, _ = world(30, seed=12)
    for name in ("nothing", "mean-by-action", "ridge"):
        told = fitted(name).predict(fresh)
        found = evaluate(fresh, told, resamples=5)["horizon"]["intervals"]["marginal"]
        assert 0.8 < found["coverage"]["value"] <= 0.98


def test_the_anchored_law_is_the_law_and_the_pooled_one_has_its_strength() -> None:
    _, test = parts()
    np.testing.assert_allclose(
        predicted("anchored-multi-power").horizon[:, 2], test.law[:, 0], atol=1e-12
    )
    train, _ = parts()
    made = replace(train, looks=np.repeat(unsquash(3 * squash(train.law[:, :1])), 8, axis=1))
    fitted = make("pooled-multi-power").fit(made)
    np.testing.assert_allclose(fitted.predict(made).horizon[:, 2], made.horizon, atol=1e-9)


def test_spikes_correct_the_law_where_there_is_one() -> None:
    train, _ = parts()
    spiking = train.states[train.snapshot, STATE.index("index_most")] >= 1
    reset = train.actions[:, 0, RESET] > 0
    error = np.where(spiking & reset, 2.0, 0.0)
    made = replace(
        train, looks=np.repeat(unsquash(squash(train.law[:, :1]) + error[:, None]), 8, axis=1)
    )
    median = make("law-and-spikes", weight=1e-9).fit(made).predict(made).horizon[:, 2]
    np.testing.assert_allclose(median, made.horizon, atol=1e-6)


def test_means_are_shrunk_to_their_range_and_to_all() -> None:
    made = examples([0, 0, 1], [0, 0, 1], ["single"] * 3, [0.0] * 3)
    made.actions[:] = 0
    made.actions[0, 0, LR] = made.actions[1, 0, LR] = -0.5
    made.actions[1, 0, RESET] = 1
    made.actions[2, 3, LR] = 0.5
    assert len(set(groups(made).tolist())) == 3
    y = np.array([1.0, 3.0, 8.0])
    fitted = make("mean-by-action", weight=1.0)._means(  # type: ignore[attr-defined]
        replace(made, looks=np.repeat(unsquash(y)[:, None], 8, axis=1))
    )
    overall = 4.0
    low, high = (1 + 3 + overall) / 3, (8 + overall) / 2
    np.testing.assert_allclose(fitted(made)[:, 0], [(1 + low) / 2, (3 + low) / 2, (8 + high) / 2])


def test_groups_tell_actions_apart() -> None:
    n = 2 + len(ACTION)
    made = examples([0] * n, [0] * n, ["single"] * n, np.zeros(n))
    made.actions[:] = 0
    for place in range(len(ACTION)):
        made.actions[1 + place, place % 4, place] = 0.5
    made.actions[-1, 0, LR] = -0.5
    assert len(set(groups(made).tolist())) == n


def test_last_value_keeps_what_is_so() -> None:
    told, (_, test) = predicted("last-value"), parts()
    fired = test.states[test.snapshot, SENSITIVE] > 0.5
    assert set(told.instability[fired]) == {1.0}
    assert set(told.instability[~fired]) == {0.0}
    assert told.recovery[fired].min() == 4
    assert told.recovery[~fired].max() == 0


def test_ridge_is_the_normal_equations() -> None:
    from trainenv.worldmodel.baselines.ridge import _lines

    rng = np.random.default_rng(5)
    for rows, columns in ((40, 6), (6, 40)):
        x, y = rng.normal(size=(rows, columns)), rng.normal(size=rows)
        centred = x - x.mean(axis=0)
        for penalty, line in zip((0.5, 20.0), _lines(x, y, (0.5, 20.0))):
            direct = np.linalg.solve(
                centred.T @ centred + penalty * np.eye(columns), centred.T @ (y - y.mean())
            )
            np.testing.assert_allclose(line.weights, direct, atol=1e-9)
            assert line(x).mean() == pytest.approx(y.mean())


def test_ridge_chooses_a_penalty_that_holds_on_other_trunks() -> None:
    from trainenv.worldmodel.baselines.ridge import _line

    rng = np.random.default_rng(6)
    x, trunk = rng.normal(size=(300, 8)), np.repeat(np.arange(30), 10)
    masks = [trunk % 5 == number for number in range(5)]
    truth = x @ np.arange(8.0)
    line, told = _line(x, truth, masks, (1e-6, 1e6))
    np.testing.assert_allclose(line.weights, np.arange(8.0), atol=1e-5)
    np.testing.assert_allclose(told, truth, atol=1e-4)
    line, _ = _line(x, rng.normal(size=300), masks, (1e-6, 1e6))
    assert np.abs(line.weights).max() < 1e-3


# ── curves ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def state(**features: float) -> np.ndarray:  # type: ignore[type-arg]
    values = {"level": -0.5, "train_gap": 0.0, "past": np.log(20.0), "above_best": 0.0}
    whole = np.full(len(STATE), np.nan)
    for name, value in (values | features).items():
        whole[STATE.index(name)] = value
    return whole


def test_a_curve_is_drawn_from_its_slopes() -> None:
    # ln loss = −0.5 − 0.02·(decisions from now): over n decisions it changes by −0.02·n, ten times that is the feature.
    history = reconstructed(state(slope_1=-0.2, slope_4=-0.8, slope_16=-3.2), 5)
    ago = (history.steps[-1] - history.steps) / 5
    assert (history.steps[-1], ago[0]) == (100, 16)
    np.testing.assert_allclose(np.log(history.losses), -0.5 + 0.02 * ago, atol=1e-12)
    short = reconstructed(state(past=np.log(2.0)), 5)
    assert (short.steps[0], short.steps[-1]) == (0, 10)
    np.testing.assert_allclose(np.log(short.losses), -0.5)


@pytest.mark.parametrize("name", ["pow3", "exponential", "domhan"])
def test_curves_forecast_recovery_and_divergence_of_the_run(name: str) -> None:
    train, _ = parts()
    falling = {"slope_1": -0.4, "slope_4": -1.6, "slope_16": -6.4}
    states = np.stack([
        state(**falling, above_best=0.05),  # 0.04 a decision: soon back
        state(slope_1=0.0, slope_4=0.0, slope_16=0.0, above_best=1.0, level=-1.5),  # never
        state(**falling, level=-0.001),  # about to be lost, by its level
        state(**falling, level=-2.0),  # far from it, and at its best
    ])  # fmt: skip
    made = examples([0, 1, 2, 3], [0, 1, 2, 3], ["single"] * 4, np.zeros(4), states=states)
    told = make(name).fit(train).predict(made)
    assert told.recovery[0, 2] in (1, 2, 3)
    assert told.recovery[1, 2] == 4
    assert told.recovery[3].max() == 0
    assert told.divergence[3] < 1e-3
    if name == "pow3":  # the others forecast this curve exactly, and that it falls
        assert told.divergence[2] > 0.01


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_folds_keep_trunks_together() -> None:
    train, _ = parts()
    masks = list(folds(train))
    assert len(masks) == 5
    assert (np.sum(masks, axis=0) == 1).all()
    for mask in masks:
        assert not set(train.trunk[mask]) & set(train.trunk[~mask])
        assert 3 * 26 <= mask.sum() <= 6 * 26


def test_offsets_are_quantiles_of_errors_and_a_claim_stays_the_median() -> None:
    train, _ = parts()
    errors = offsets(train, np.zeros((len(train), 3)), centred=False)
    known = outcomes(train)[train.candidate]
    np.testing.assert_allclose(errors[0], np.quantile(known[:, 0], LEVELS))
    np.testing.assert_allclose(errors[2], np.quantile(known[~np.isnan(known[:, 2]), 2], LEVELS))
    claim = offsets(train, np.full((len(train), 3), -9.0), centred=True)
    assert not claim[:, :3].any()  # every error is above 0
    assert (claim[:, 3:] > 0).all()


def test_rates_and_hazards() -> None:
    made = examples(
        [0] * 8, [0] * 8, ["single"] * 8, np.zeros(8), diverged=[0, 0, 1, 3, -1, -1, -1, -1]
    )
    np.testing.assert_allclose(Rates.of(made).hazard, [2 / 8, 1 / 6, 0, 1 / 5])
    np.testing.assert_allclose(shares(made), [0.5, 0.25, 0, 0.25])
    chances = np.array([0.0, 0.4, 1.0])
    found = hazards(chances, shares(made))
    np.testing.assert_allclose(1 - np.prod(1 - found, axis=1), chances, atol=1e-12)
    np.testing.assert_allclose(found[1], [0.2, 0.1 / 0.8, 0, 0.1 / 0.7])
    assert shares(examples([0], [0], ["single"], [0.0])).tolist() == [1 / DECISIONS] * 4
