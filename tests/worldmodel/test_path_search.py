"""The path model as a part of the world model: in forecasts, in files, blind, and as the model of a search."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.made_models import history, model
from trainenv import cli, planners
from trainenv.interventions import ActionCodec
from trainenv.planners import testing
from trainenv.planners.support.rate_paths import sequence_of
from trainenv.types import Intervention, PathModel, UserError, as_path_model
from trainenv.worldmodel import build as building
from trainenv.worldmodel.model import Model, paths_of
from trainenv.worldmodel.paths.fit import Fitting, fit
from trainenv.worldmodel.paths.inference import PathInference
from trainenv.worldmodel.paths.inputs import STATE_INPUTS, path_features
from trainenv.worldmodel.paths.model import PathValueModel
from trainenv.worldmodel.paths.network import Ensemble, Shape
from trainenv.worldmodel.paths.table import PathTable
from trainenv.worldmodel.serialization import load, save

WISH = 0.6  # ln factor at the end of the run that the fitted model likes best


def random_paths(seed: int = 0) -> PathValueModel:
    """A path model with random weights, whose values differ from path to path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PathValueModel(Ensemble(Shape(members=3, width=8)))


@cache
def wishing() -> PathValueModel:
    """A path model that was fitted to runs which end best at a higher rate."""
    rng = np.random.default_rng(0)
    count = 2000
    level = rng.uniform(-1.5, 1.5, size=(count, 1))
    start = rng.integers(0, 12, size=(count, 1))
    rest = level * (np.arange(25) >= start)
    ahead = path_features(
        np.linspace(1, 0.04, 25)[None] + np.zeros((count, 1)),
        rest,
        np.zeros(count),
        np.zeros(count),
        np.zeros(count),
    )
    change = 0.3 * (rest[:, -1] - WISH) ** 2
    table = PathTable(
        inputs=np.concatenate([rng.normal(size=(count, STATE_INPUTS)), ahead], axis=1),
        change=change,
        level=np.zeros(count),
        end=change,
        group=np.arange(count) // 8,
        run=np.arange(count) % 8,
        decision=np.ones(count, dtype=np.int64),
    )
    return PathValueModel(fit(table, Fitting(shape=Shape(members=2, width=32), epochs=25)))


def whole(paths: PathValueModel | None = None) -> Model:
    """A world model with a path model."""
    made = model()
    return Model(made.networks, made.calibrations, made.card, paths=paths or random_paths())


# ── search ────────────────────────────────────────────────────────────────────────────────────────


def test_children_have_the_value_of_the_same_path() -> None:
    paths = random_paths()
    search = PathInference(paths=paths, caution=1.0)
    codec = ActionCodec()
    some, other = history(), history(80)
    root = search.initial_inference([some, other])
    np.testing.assert_allclose(root.value, 0.0, atol=1e-6)
    left = 25
    factor = np.zeros((2, left))
    inference = root
    rng = np.random.default_rng(0)
    for depth in range(6):
        actions = np.zeros((2, len(codec.sizes)), dtype=np.int64)
        actions[:, 0] = rng.integers(0, codec.sizes[0], 2)
        inference = search.recurrent_inference(inference.latent, actions)
        for row, action in enumerate(actions):
            factor[row, depth:] += math.log(codec.decode(action).lr_scale)
        for row, one in enumerate((some, other)):
            values = paths.path_values(one, factor[row : row + 1])
            expected = -(values.change[0] + values.disagreement[0])
            assert inference.value[row] == pytest.approx(expected, abs=2e-5)
        assert inference.reward.tolist() == [0.0, 0.0]
    assert abs(inference.value).max() > 1e-4
    assert {part.dtype for part in (inference.latent, inference.value)} == {np.dtype(np.float32)}


def test_only_the_rate_has_an_effect() -> None:
    search = PathInference(paths=random_paths())
    root = search.initial_inference([history()])
    codec = ActionCodec()
    clip = codec.encode(Intervention(clip="arc", momentum_reset=True))[None]
    assert search.recurrent_inference(root.latent, clip).value[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("depth", [4, 10])
def test_a_search_finds_a_better_path_than_holding(depth: int) -> None:
    paths = wishing()
    problem = testing.ToyWorld(unsafe=None).problem(
        0, history=history(), model=PathInference(paths=paths, caution=0.0), executor=None
    )
    plan = planners.make("mcts", simulations=80, depth=depth, forecasts=0).plan(problem)
    assert not plan.faults
    best = plan.best
    assert not best.does_nothing
    path = paths_of([best.interventions], 25)
    change = paths.path_values(history(), path).change[0]
    assert best.score == pytest.approx(change, abs=1e-4)
    assert change < -0.02
    assert path[0, -1] > 0.15


def test_more_decisions_reach_further() -> None:
    scores = []
    for depth in (1, 4):
        problem = testing.ToyWorld(unsafe=None).problem(
            0, history=history(), model=PathInference(paths=wishing(), caution=0.0), executor=None
        )
        plan = planners.make("mcts", simulations=80, depth=depth, forecasts=0).plan(problem)
        scores.append(plan.best.score)
    assert scores[1] < scores[0] < 0


# ── forecasts ─────────────────────────────────────────────────────────────────────────────────────


def test_the_end_of_a_forecast_is_the_value_of_its_path() -> None:
    here = whole()
    ramp = np.linspace(0, 0.7, 25)
    dip = np.where(np.arange(25) < 9, -0.3, 0.2)
    sequences = [sequence_of(ramp), sequence_of(dip), (Intervention(),), (Intervention(),) * 3]
    found = here.forecast(history(), sequences)
    values = here.path_values(history(), np.stack([ramp, dip, np.zeros(25), np.zeros(25)]))
    for place in range(4):
        assert found[place].final.mean == pytest.approx(values.change[place], abs=1e-6)
        width = found[place].final.high - found[place].final.low
        assert width == pytest.approx(2 * 1.645 * values.disagreement[place], rel=1e-3, abs=1e-6)
    assert found[2].final.mean == found[3].final.mean == 0.0


def test_the_horizon_of_a_forecast_depends_on_the_first_four_decisions_alone() -> None:
    here = whole()
    short = tuple(Intervention(lr_scale=scale) for scale in (1.1, 0.9, 1.1, 0.8))
    later = (*short, Intervention(lr_scale=0.5), Intervention(lr_scale=1.1))
    first, second = here.forecast(history(), [short, later])
    (without,) = model().forecast(history(), [short])
    assert first.horizon == second.horizon == without.horizon
    assert first.annealed == second.annealed == without.annealed
    assert first.hazard == second.hazard == without.hazard
    assert first.final != second.final
    assert first.final != without.final


def test_what_comes_after_the_end_is_left_out() -> None:
    here = whole()
    near = history(left=8, decision=4)  # two decisions left
    many = (Intervention(lr_scale=1.1),) * 6
    two = here.forecast(near, [many[:2]])[0].final
    assert here.forecast(near, [many])[0].final == two


def test_paths_of_several_lengths_are_valued_for_one_history() -> None:
    paths = random_paths()
    one = history()
    long = paths.path_values(one, np.full((1, 25), 0.3)).change
    short = paths.path_values(one, np.full((1, 5), 0.3)).change
    fresh = random_paths().path_values(one, np.full((1, 5), 0.3)).change
    np.testing.assert_array_equal(short, fresh)
    np.testing.assert_array_equal(paths.path_values(one, np.full((1, 25), 0.3)).change, long)


# ── with and without paths, files, blind ──────────────────────────────────────────────────────────


def test_a_model_tells_whether_it_values_paths() -> None:
    here = whole()
    assert as_path_model(here) is here
    assert here.flops_per_path > 0
    assert isinstance(model(), PathModel)
    assert as_path_model(model()) is None
    assert as_path_model(None) is None
    assert model().flops_per_path == 0
    with pytest.raises(UserError, match="found one without"):
        model().path_values(history(), np.zeros((1, 25)))


def test_files_of_a_model_keep_its_paths(tmp_path: Path) -> None:
    here = whole()
    folder = save(here, tmp_path / "model")
    assert {"paths.safetensors", "paths.json"} <= {path.name for path in folder.iterdir()}
    read = load(folder)
    assert read.paths is not None
    some = np.cumsum(np.full((3, 25), 0.05) * np.array([[1], [-1], [2]]), axis=1)
    one = here.path_values(history(), some)
    other = read.path_values(history(), some)
    np.testing.assert_allclose(other.change, one.change, atol=5e-3)
    again = save(read, tmp_path / "again")
    for name in ("paths.safetensors", "paths.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert load(save(model(), tmp_path / "without")).paths is None
    (folder / "paths.json").unlink()
    with pytest.raises(UserError, match="expected a path model"):
        load(folder)


def test_a_blind_model_values_paths_by_their_shape_alone() -> None:
    here = whole()
    blind = here.blinded()
    assert blind.paths is not None
    assert blind.paths.blind
    assert not here.paths.blind  # type: ignore[union-attr]
    some = np.cumsum(np.full((2, 25), 0.05) * np.array([[1], [-1]]), axis=1)
    calm = history()
    wild = history(rows=[replace(t, grad_norm=9 * t.grad_norm) for t in calm.telemetry])
    seen = [here.path_values(one, some).change for one in (calm, wild)]
    unseen = [blind.path_values(one, some).change for one in (calm, wild)]
    assert not np.allclose(seen[0], seen[1], atol=1e-5)
    np.testing.assert_allclose(unseen[0], unseen[1], atol=1e-6)
    assert not np.allclose(unseen[0][0], unseen[0][1])
    kept = blind.with_parts(blind.networks, None)
    assert kept.paths is blind.paths


def test_the_command_passes_the_groups_of_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def quickly(folder: Path, recipe: Any, run: Any, **more: Any) -> dict[str, Any]:
        asked.update(recipe=recipe)
        return {"folder": str(folder), "interrupted": False, "trunks": 7}

    monkeypatch.setattr(building, "build", quickly)
    arguments = ["worldmodel", "build", "--trunks", "64", "--seed", "9", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--groups", "16", "8", "--json"]) == 0
    recipe = asked["recipe"].paths
    assert (recipe.groups, recipe.seed) == ((16, 8), 9)
    assert json.loads(capsys.readouterr().out)["trunks"] == 7
    assert cli.main([*arguments, "--groups", "4"]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert "groups must be at least one number of 8 or more, found (4,)" in said
