"""Data, fit and files of the model of whole paths."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.made_models import history
from trainenv.cli.worldmodel import fold_runs, make_small_run
from trainenv.types import PathModel, UserError
from trainenv.worldmodel.dataset.texts import write_texts
from trainenv.worldmodel.dataset.trunks import Size
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.paths.collect import DECISIONS, RUNS, collect
from trainenv.worldmodel.paths.evaluate import calibrated_width, coverage, predict, regret
from trainenv.worldmodel.paths.fit import Fitting, fit
from trainenv.worldmodel.paths.generate import generate
from trainenv.worldmodel.paths.groups import Group, sample_groups
from trainenv.worldmodel.paths.inputs import PATH, STATE_INPUTS, PathState, path_features
from trainenv.worldmodel.paths.model import PathValueModel, path_state
from trainenv.worldmodel.paths.network import Ensemble, Shape
from trainenv.worldmodel.paths.rate_paths import HIGHEST, LOWEST, random_path
from trainenv.worldmodel.paths.serialization import load_paths, save_paths
from trainenv.worldmodel.paths.shooting import RandomShooting
from trainenv.worldmodel.paths.store import PathFiles
from trainenv.worldmodel.paths.table import PathTable

SMALL = Shape(members=2, width=8)


def group(index: int = 0, **changes: Any) -> Group:
    (first,) = sample_groups(1, seed=3, first=index)
    size = Size(width=8, layers=1, heads=1, context=16, batch_size=2)
    values = {"steps": 90, "text": "bytes", "size": size, "stressors": {}, "warmup": 5}
    return dataclasses.replace(first, **{**values, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths") / "round"
    made = generate(folder, [group(0), group(1)], make_small_run, fold_runs, workers=0)
    assert made.made == ["g00000", "g00001"]
    return folder


def synthetic(groups: int, seed: int = 0) -> PathTable:
    """Examples whose change is known: the square of the distance of the level at the end to 1."""
    rng = np.random.default_rng(seed)
    count = 8 * groups
    states = rng.normal(size=(count, STATE_INPUTS))
    rest = rng.normal(size=(count, 1)) * np.ones((1, 12))
    ahead = path_features(
        np.ones((count, 12)), rest, np.zeros(count), np.zeros(count), np.zeros(count)
    )
    change = 0.1 * (rest[:, -1] - states[:, 0]) ** 2
    return PathTable(
        inputs=np.concatenate([states, ahead], axis=1),
        change=change,
        level=np.zeros(count),
        end=change,
        group=np.repeat(np.arange(groups), 8),
        run=np.tile(np.arange(8), groups),
        decision=np.ones(count, dtype=np.int64),
    )


# ── paths and groups ──────────────────────────────────────────────────────────────────────────────


def test_random_paths_keep_their_beginning_and_the_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        whole = random_path(rng, 30)
        assert whole.shape == (30,)
        assert whole[0] == 0
        assert whole.min() >= LOWEST
        assert whole.max() <= HIGHEST
        again = random_path(rng, 30, whole[:11])
        np.testing.assert_array_equal(again[:11], whole[:11])
    np.testing.assert_array_equal(random_path(rng, 3, np.zeros(3)), np.zeros(3))


def test_groups_are_a_function_of_seed_and_index_and_build_runs() -> None:
    assert sample_groups(3, seed=1, first=2)[0] == sample_groups(9, seed=1)[2]
    assert sample_groups(1, seed=1) != sample_groups(1, seed=2)
    some = sample_groups(40, seed=5)
    assert Group.from_json(json.loads(json.dumps(some[7].to_json()))) == some[7]
    assert any(one.stressors.get("planted") for one in some)
    with pytest.raises(UserError, match="at least 1, found 0"):
        sample_groups(0, seed=1)


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


def test_rows_hold_every_decision_of_every_run(data: Path) -> None:
    found, rows = PathFiles.open(data).read("g00000")
    assert found == group(0)
    assert rows.num_rows == RUNS
    paths = np.array(rows["path"].to_pylist())
    assert paths.shape == (RUNS, DECISIONS)
    assert not paths[0].any()
    assert paths[1:].any(axis=1).all()
    table = PathTable.of([data])
    assert len(table)
    assert np.isfinite(table.inputs).all()
    assert np.isfinite(table.change).all()
    np.testing.assert_allclose(table.level + table.change, table.end, atol=1e-6)
    assert set(table.group) == {0, 1}


def test_starts_are_those_of_runs_without_a_planner_under_other_schedules(data: Path) -> None:
    table = PathTable.of([data])
    starts = table.where(table.decision == 0)
    assert len(starts) == 2 * RUNS * 8
    features = starts.inputs[:, STATE_INPUTS:]
    named = {name: features[:, place] for place, name in enumerate(PATH)}
    assert np.ptp(named["first"]) > 1.0
    # A schedule that is so many times as high, and a path that is as much lower, is the same run.
    first_rate = named["now_over_usual"] + named["first"]
    for group_number in (0, 1):
        own = first_rate[starts.group == group_number]
        np.testing.assert_allclose(own, own[0], atol=1e-9)
    assert np.median(starts.change) == pytest.approx(0.0, abs=1e-9)  # of one text
    flags = starts.inputs[:, len(STATE) : STATE_INPUTS]
    assert flags.sum(axis=1).tolist() == [3.0] * len(starts)


def test_runs_that_a_planner_steered_give_no_starts(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_paths(PathValueModel(Ensemble(SMALL)), tmp_path / "model", {})
    policy = RandomShooting(folder=str(tmp_path / "model"))
    generate(tmp_path / "x", [group(2)], make_small_run, fold_runs, policy=policy, workers=0)
    table = PathTable.of([tmp_path / "x"])
    assert set(table.run[table.decision == 0]) == {0}
    assert set(table.run[table.decision > 0]) == set(range(RUNS))


def test_collecting_again_gives_the_same_rows_and_other_groups_are_refused(
    data: Path, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "corpora")
    _, kept = PathFiles.open(data).read("g00000")
    again = collect(group(0), texts, make_small_run, fold_runs)
    np.testing.assert_array_equal(
        np.array(kept["states"].to_pylist(), dtype=np.float32),
        np.stack([row["states"].astype(np.float32).reshape(-1) for row in again]),
    )
    assert kept["end"].to_pylist() == [row["end"] for row in again]
    repeated = generate(data, [group(0)], make_small_run, fold_runs, workers=0)
    assert (repeated.there, repeated.made) == (["g00000"], [])
    with pytest.raises(UserError, match="another group g00000"):
        generate(data, [group(0, steps=120)], make_small_run, fold_runs, workers=0)


def test_a_group_that_fails_is_reported_and_the_others_are_made(tmp_path: Path) -> None:
    def fails(overrides: Any) -> Any:
        if overrides["name"] == "g00000":
            raise RuntimeError("no room")
        return make_small_run(overrides)

    made = generate(tmp_path / "x", [group(0), group(1)], fails, fold_runs, workers=0)
    assert "no room" in made.failed["g00000"]
    assert made.made == ["g00001"]


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        PathFiles.begin(tmp_path)
    with pytest.raises(UserError, match=r"found no paths\.json"):
        PathFiles.open(tmp_path)


def test_a_damaged_file_is_named(data: Path, tmp_path: Path) -> None:
    files = PathFiles.begin(tmp_path / "x")
    (files.folder / "groups" / "g00000.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"g00000\.parquet"):
        PathTable.of([files.folder])


# ── inputs ────────────────────────────────────────────────────────────────────────────────────────


def test_features_of_a_path_do_not_depend_on_the_number_of_decisions() -> None:
    coarse = np.repeat(np.array([[0.1, 0.4, -0.3, 0.2, 0.5]]), 2, axis=1)
    fine = np.repeat(coarse, 3, axis=1)
    now = np.array([0.3])
    peak = np.array([-5.0])
    usual = np.array([math.nan])
    one = path_features(np.full((1, 10), 1e-3), coarse, now, peak, usual)
    other = path_features(np.full((1, 30), 1e-3), fine, now, peak, usual)
    np.testing.assert_allclose(one, other, atol=1e-12)
    assert one.shape == (1, len(PATH))


def test_features_of_holding_are_zero_where_they_compare_with_now() -> None:
    found = path_features(
        np.linspace(1, 0.1, 8)[None], np.zeros((1, 8)), np.zeros(1), np.zeros(1), np.zeros(1)
    )
    named = dict(zip(PATH, found[0]))
    assert all(abs(named[name]) < 1e-12 for name in PATH[:10])
    assert named["area"] == 0
    assert named["peak"] == 0
    assert named["end_rate"] == pytest.approx(0.1)


# ── the model ─────────────────────────────────────────────────────────────────────────────────────


def test_a_fit_learns_what_the_end_depends_on_and_a_blind_one_cannot() -> None:
    table = synthetic(150)
    held = synthetic(40, seed=1)
    how = Fitting(
        shape=Shape(members=2, width=32, dropout=0.0), epochs=15, batch_size=64, blind=0.2
    )
    told = predict(fit(table, how), held)
    ensemble = fit(table, how)
    blind = predict(ensemble, held, blind=True)
    error = float(np.abs(told[:, 0] - held.change).mean())
    assert error < 0.5 * float(np.abs(blind[:, 0] - held.change).mean())
    assert regret(told[:, 0], held, 1)["pick"] < 0.6 * regret(blind[:, 0], held, 1)["pick"]
    width = calibrated_width(told, held)
    assert 0.85 < coverage(told, held, width) <= 1
    assert coverage(told, held, 0.5 * width) < coverage(told, held, width)


def test_a_fit_is_a_function_of_its_seed() -> None:
    table = synthetic(20)
    how = Fitting(shape=SMALL, epochs=1)
    one, two = fit(table, how), fit(table, how)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    other = fit(table, dataclasses.replace(how, seed=1))
    assert not torch.equal(one.weights[0], other.weights[0])


def test_values_are_against_holding_and_equal_one_by_one() -> None:
    torch.manual_seed(0)
    model = PathValueModel(Ensemble(SMALL))
    state = PathState(
        features=np.full(len(STATE), math.nan),
        level=0.5,
        schedule=np.linspace(1e-3, 1e-4, 12),
        now=0.2,
        peak=-6.0,
    )
    rest = np.cumsum(np.random.default_rng(0).normal(size=(6, 12)) * 0.1, axis=1)
    rest[0] = 0
    values = model.values(state, rest)
    assert values.change[0] == 0
    assert values.disagreement[0] == 0
    for row in range(6):
        alone = model.values(state, rest[row : row + 1])
        assert alone.change[0] == pytest.approx(values.change[row], abs=1e-6)


def test_values_from_a_history_ignore_its_validation_loss_and_follow_the_rate_ahead() -> None:
    torch.manual_seed(0)
    model = PathValueModel(Ensemble(SMALL))
    paths = np.cumsum(np.full((3, 25), 0.1) * np.array([[0], [1], [-1]]), axis=1)
    plain = model.path_values(history(), paths)
    measured = model.path_values(history(validation=2.5), paths)
    np.testing.assert_array_equal(plain.change, measured.change)
    state = path_state(history(left=100), 25)
    assert state.schedule.shape == (25,)
    ahead = np.array(history(left=100).lrs_ahead)
    assert state.schedule.sum() * math.exp(state.now) * 4 == pytest.approx(ahead.sum())


def test_paths_are_valued_before_the_first_step() -> None:
    torch.manual_seed(0)
    model = PathValueModel(Ensemble(SMALL))
    begun = history(left=100)
    start = dataclasses.replace(begun, telemetry=(), usual_lr=1e-3)
    paths = np.array([[0.0], [-1.0], [1.0]]) * np.ones(25)
    values = model.path_values(start, paths)
    assert values.change[0] == 0
    assert abs(values.change[1:]).min() > 0
    assert np.isnan(values.low).all()  # how hard the text is, is not known
    other = model.path_values(dataclasses.replace(start, usual_lr=1e-2), paths)
    assert not np.allclose(values.change, other.change)


def test_budgets_that_nothing_was_learned_from_count_as_disagreement() -> None:
    torch.manual_seed(0)
    model = PathValueModel(Ensemble(SMALL))
    features = np.full(len(STATE), math.nan)
    rest = np.array([[0.0], [0.1], [-0.1]]) * np.ones(12)

    def disagreement(steps: float) -> np.ndarray[Any, Any]:
        features[STATE.index("decision")] = math.log(steps)
        state = PathState(
            features=features.copy(), level=0.5, schedule=np.ones(12), now=0.0, peak=0.0
        )
        return model.values(state, rest).disagreement

    ensemble_alone = disagreement(20)
    few = 0.012 * math.log(6)  # from 1000 steps to 6000
    for steps, expected in ((180 * math.e, 0.03 + few), (6 / math.e, 0.03)):
        added = disagreement(steps)
        assert added[0] == 0  # holding the rate
        assert abs(added[1:] - ensemble_alone[1:] - expected).max() < 0.02
    assert disagreement(500)[1] > disagreement(100)[1] + 0.02


def test_files_keep_the_model_and_damage_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert load_paths(tmp_path) is None
    model = PathValueModel(Ensemble(SMALL), width=1.25)
    save_paths(model, tmp_path, {"note": 1})
    read = load_paths(tmp_path)
    assert read is not None
    assert read.width == 1.25
    assert isinstance(read, PathModel)
    for name, value in model.ensemble.state_dict().items():
        torch.testing.assert_close(read.ensemble.state_dict()[name], value, atol=2e-3, rtol=2e-3)
    content = bytearray((tmp_path / "paths.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "paths.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="another format or digest"):
        load_paths(tmp_path)
    (tmp_path / "paths.safetensors").unlink()
    with pytest.raises(UserError, match="expected a path model"):
        load_paths(tmp_path)


def test_the_collecting_policy_takes_what_the_model_likes(tmp_path: Path) -> None:
    table = synthetic(100)
    ensemble = fit(table, Fitting(shape=Shape(members=2, width=32, dropout=0.0), epochs=10))
    save_paths(PathValueModel(ensemble), tmp_path)
    policy = RandomShooting(folder=str(tmp_path), paths=16)
    states = [np.full(len(STATE), 0.0)] * 2
    rng = np.random.default_rng(0)
    schedule = np.full(DECISIONS, 1e-3)
    path = np.zeros(DECISIONS)
    chosen = policy(states, [1.0, 1.0], [schedule] * 2, [path] * 2, [-5.0] * 2, 5, rng)
    assert len(chosen) == 2
    assert all(LOWEST <= one <= HIGHEST for one in chosen)
    again = policy(
        states, [1.0, 1.0], [schedule] * 2, [path] * 2, [-5.0] * 2, 5, np.random.default_rng(0)
    )
    assert again == chosen
