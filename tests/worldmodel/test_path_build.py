"""The build of a path model: rounds, the later of them collected with the model; resumed, and refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.made_models import history
from trainenv.cli.worldmodel import fold_runs, make_small_run
from trainenv.types import UserError
from trainenv.worldmodel.dataset.trunks import Size
from trainenv.worldmodel.paths import build as building
from trainenv.worldmodel.paths.build import PathRecipe, build_paths
from trainenv.worldmodel.paths.collect import DECISIONS, RUNS
from trainenv.worldmodel.paths.fit import Fitting
from trainenv.worldmodel.paths.groups import Group, sample_groups
from trainenv.worldmodel.paths.network import Shape
from trainenv.worldmodel.paths.serialization import load_paths
from trainenv.worldmodel.paths.store import PathFiles

RECIPE = PathRecipe(
    groups=(8, 9),
    workers=0,
    fitting=Fitting(shape=Shape(members=2, width=8), epochs=2),
)


def tiny(count: int, *, seed: int, first: int = 0) -> list[Group]:
    """Groups of the seed, but of runs of 60 steps that take a moment."""
    size = Size(width=8, layers=1, heads=1, context=16, batch_size=1)
    values: dict[str, Any] = {"steps": 60, "text": "bytes", "stressors": {}, "warmup": 4}
    groups = sample_groups(count, seed=seed, first=first)
    return [dataclasses.replace(one, size=size, **values) for one in groups]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A build that was interrupted after three groups, and resumed."""
    folder = tmp_path_factory.mktemp("paths") / "build"
    said: list[str] = []
    asked = iter([False] * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "sample_groups", tiny)
        first = build_paths(
            folder, RECIPE, make_small_run, fold_runs, stop=lambda: next(asked, True)
        )
        assert first == {"interrupted": True, "folder": str(folder)}
        assert len(PathFiles.open(folder / "round-0").names()) == 3
        assert load_paths(folder) is None
        report = build_paths(folder, RECIPE, make_small_run, fold_runs, say=said.append)
    return folder, report, said


def test_each_round_has_its_data_and_its_model(
    built: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, report, said = built
    assert not report["interrupted"]
    assert report["groups"] == 17
    assert report["examples"] > 17 * RUNS * (DECISIONS - 1) * 0.5
    assert len(PathFiles.open(folder / "round-0").names()) == 8
    assert len(PathFiles.open(folder / "round-1").names()) == 9
    assert [sentence.split(":")[0] for sentence in said] == ["round 0"] * 2 + ["round 1"] * 2
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
    _, random = PathFiles.open(folder / "round-0").read("g00000")
    _, planned = PathFiles.open(folder / "round-1").read("g00000")
    assert set(random["followed"].to_pylist()) == {0}
    followed = planned["followed"].to_pylist()
    assert followed[0] == 0
    assert followed[1 : RUNS // 2 + 1] == [DECISIONS] * (RUNS // 2)
    assert all(1 < one < DECISIONS for one in followed[RUNS // 2 + 1 :])


def test_building_again_trains_nothing_and_gives_the_same_files(
    built: tuple[Path, dict[str, Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = built
    monkeypatch.setattr(building, "sample_groups", tiny)

    def never(overrides: Any) -> Any:
        raise AssertionError("expected no run to be made")

    before = (folder / "paths.safetensors").read_bytes()
    assert not build_paths(folder, RECIPE, never, fold_runs)["interrupted"]
    assert (folder / "paths.safetensors").read_bytes() == before


def test_groups_that_fail_end_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "sample_groups", tiny)

    def never(overrides: Any) -> Any:
        raise RuntimeError("no such luck")

    with pytest.raises(UserError, match=r"found 8 that failed, for instance g0000\d: .*such luck"):
        build_paths(tmp_path / "x", RECIPE, never, fold_runs)


@pytest.mark.parametrize("groups", [(), (7,), (8, 0)])
def test_too_few_groups_are_refused(groups: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="groups must be at least one number of 8 or more"):
        PathRecipe(groups=groups)
