"""The build of a path model: rounds, the later of them collected with the model; resumed, and refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.made_models import history
from trainenv.cli.worldmodel import fold_runs, make_small_run
from trainenv.types import UserError
from trainenv.worldmodel.dataset.texts import write_texts
from trainenv.worldmodel.dataset.trunks import Size
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.paths import generate as generating
from trainenv.worldmodel.paths.build import PathRecipe, build_paths
from trainenv.worldmodel.paths.collect import DECISIONS, RUNS, collect
from trainenv.worldmodel.paths.fit import Fitting
from trainenv.worldmodel.paths.groups import LONG_STEPS, STEPS, Group, sample_groups
from trainenv.worldmodel.paths.network import Shape
from trainenv.worldmodel.paths.rate_paths import random_path
from trainenv.worldmodel.paths.serialization import load_paths
from trainenv.worldmodel.paths.shooting import RandomShooting
from trainenv.worldmodel.paths.store import PathFiles

RECIPE = PathRecipe(
    groups=(8, 9),
    long_groups=(2, 3),
    workers=0,
    fitting=Fitting(shape=Shape(members=2, width=8), epochs=2),
)


def tiny(count: int, *, seed: int, first: int = 0) -> list[Group]:
    """Groups of the seed, but of runs of 60 steps that take a moment."""
    size = Size(width=8, layers=1, heads=1, context=16, batch_size=1)
    values: dict[str, Any] = {"steps": 60, "text": "bytes", "stressors": {}, "warmup": 4}
    groups = sample_groups(count, seed=seed, first=first)
    return [dataclasses.replace(one, size=size, **values) for one in groups]


def made_up(
    group: Group, texts: Any, make_run: Any, fold: Any, policy: RandomShooting | None = None
) -> list[dict[str, Any]]:
    """Rows of a group that nobody has trained, in place of `collect`."""
    make_run({})
    rng = np.random.default_rng([group.seed, group.index])
    if policy is not None:
        assert load_paths(policy.folder) is not None
    return [
        {
            "group": group.index,
            "run": k,
            "followed": DECISIONS * (policy is not None and k > 0),
            "steps": group.steps,
            "path": random_path(rng, DECISIONS),
            "schedule": np.linspace(1e-3, 1e-4, DECISIONS),
            "states": rng.normal(size=(DECISIONS, len(STATE))),
            "levels": rng.normal(size=DECISIONS) * 0.1 + 1,
            "end": float(rng.normal() * 0.1 + 0.7),
        }
        for k in range(RUNS)
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is trained."""
    monkeypatch.setattr(generating, "collect", made_up)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A build that was interrupted after three groups, and resumed."""
    folder = tmp_path_factory.mktemp("paths") / "build"
    said: list[str] = []
    asked = iter([False] * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "collect", made_up)
        first = build_paths(folder, RECIPE, dict, fold_runs, stop=lambda: next(asked, True))
        assert first == {"interrupted": True, "folder": str(folder)}
        assert len(PathFiles.open(folder / "round-0").names()) == 3
        assert load_paths(folder) is None
        report = build_paths(folder, RECIPE, dict, fold_runs, say=said.append)
    return folder, report, said


def test_each_round_has_its_data_and_its_model(
    built: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, report, said = built
    assert not report["interrupted"]
    assert report["groups"] == 22
    assert report["examples"] > 22 * RUNS * (DECISIONS - 1) * 0.5
    counts = [len(PathFiles.open(folder / f"round-{number}").names()) for number in range(4)]
    assert counts == [8, 9, 2, 3]
    rounds = [sentence.split(":")[0] for sentence in said]
    assert rounds == [f"round {number}" for number in range(4) for _ in range(2)]
    assert load_paths(folder / "model-0") is not None
    card = json.loads((folder / "paths.json").read_text())
    assert card["test"] == json.loads(json.dumps(report["test"]))
    assert 0 <= report["test"]["coverage"] <= 1
    model = load_paths(folder)
    assert model is not None
    assert model.path_values(history(), np.full((1, 25), 0.2)).change.shape == (1,)


def test_later_rounds_are_collected_with_the_model(
    built: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, _, _ = built
    for number in range(4):
        _, rows = PathFiles.open(folder / f"round-{number}").read("g00000")
        random = number in (0, 2)
        assert set(rows["followed"].to_pylist()) == ({0} if random else {0, DECISIONS})


def test_long_runs_come_after_the_others(
    built: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, _, _ = built
    for number in range(4):
        group, _ = PathFiles.open(folder / f"round-{number}").read("g00001")
        least, most = LONG_STEPS if number > 1 else STEPS
        assert least <= group.steps <= most


def test_runs_follow_a_policy_to_the_end_or_until_a_decision(
    built: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    folder, _, _ = built
    policy = RandomShooting(folder=str(folder / "model-0"), paths=4)
    (group,) = tiny(1, seed=5)
    rows = collect(group, write_texts(tmp_path), make_small_run, fold_runs, policy)
    followed = [row["followed"] for row in rows]
    assert followed[0] == 0
    assert followed[1 : RUNS // 2 + 1] == [DECISIONS] * (RUNS // 2)
    assert all(1 < one < DECISIONS for one in followed[RUNS // 2 + 1 :])
    assert not rows[0]["path"].any()
    assert all(math.isfinite(row["end"]) for row in rows)


def test_building_again_trains_nothing_and_gives_the_same_files(
    quick: None, built: tuple[Path, dict[str, Any], list[str]]
) -> None:
    folder, _, _ = built

    def never(overrides: Any) -> Any:
        raise AssertionError("expected no run to be made")

    before = (folder / "paths.safetensors").read_bytes()
    assert not build_paths(folder, RECIPE, never, fold_runs)["interrupted"]
    assert (folder / "paths.safetensors").read_bytes() == before


def test_groups_that_fail_end_the_build(quick: None, tmp_path: Path) -> None:
    def never(overrides: Any) -> Any:
        raise RuntimeError("no such luck")

    with pytest.raises(UserError, match=r"found 8 that failed, for instance g0000\d: .*such luck"):
        build_paths(tmp_path / "x", RECIPE, never, fold_runs)


@pytest.mark.parametrize("groups", [(), (7,), (8, 0)])
def test_too_few_groups_are_refused(groups: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="groups must be at least one number of 8 or more"):
        PathRecipe(groups=groups)


def test_empty_rounds_of_long_runs_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"long_groups must be numbers of 1 or more, found \(3, 0\)"
    ):
        PathRecipe(long_groups=(3, 0))
