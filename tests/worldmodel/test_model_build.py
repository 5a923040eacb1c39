"""The whole build, on toy runs: files, report and card are there; it stops and goes on; mistakes cost a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.made_models import SMALL as SIZES
from tests.support.made_models import history
from tests.support.toy_runs import SMALL, make_run, trunks
from trainenv import cli
from trainenv.types import Intervention, UserError
from trainenv.worldmodel import build as building
from trainenv.worldmodel.build import Recipe, build
from trainenv.worldmodel.serialization import load, load_rehearsal
from trainenv.worldmodel.training import Training

TRUNKS = 20
DESIGN = replace(
    SMALL,
    random=1,
    after_faults=0,
    fired=0,
    rewound=0,
    singles=2,
    sequences=0,
    replicated=0.3,
    continued=0.7,
)
RECIPE = Recipe(
    paths=None,
    trunks=60,
    seed=3,
    workers=0,
    design=DESIGN,
    training=Training(epochs=2),
    architecture=SIZES,
)


@pytest.fixture(scope="module")
def patched() -> Any:
    """Toy trunks in place of the sample, more of them to calibrate on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            building, "sample", lambda count, *, seed: trunks(TRUNKS, seed=seed, steps=(40, 42))
        )
        patch.setattr(building, "SHARES", {"train": 0.25, "calibrate": 0.5, "test": 0.25})
        yield patch


@pytest.fixture(scope="module")
def built(
    patched: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[str]]:
    """Stopped after three trunks, and gone on with."""
    folder, said = tmp_path_factory.mktemp("build"), []
    asked = iter([False] * 3)
    first = build(folder, RECIPE, make_run, stop=lambda: next(asked, True))
    assert first == {"folder": str(folder), "interrupted": True, "trunks": 3}
    assert not (folder / "model").exists()
    report = build(folder, RECIPE, make_run, say=said.append)
    return folder, report, said


def test_everything_is_there(built: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, said = built
    assert {path.name for path in folder.iterdir()} == {"branches", "model", "report.json"}
    assert {path.name for path in (folder / "model").iterdir()} == {
        "model.safetensors",
        "card.json",
    }
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert not report["interrupted"]
    assert report["generated"]["trunks"] == TRUNKS
    assert report["generated"]["made_now"] == TRUNKS - 3
    assert sum(report["trunks"].values()) == TRUNKS
    assert len(said) == 4
    size = sum(path.stat().st_size for path in (folder / "model").iterdir())
    assert size <= 2 * 2**20


def test_the_card_says_what_it_was_made_of(built: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = built
    model = load(folder / "model")
    card = model.card
    assert card["data"]["trunks"] == report["trunks"]
    assert card["data"]["branches"] == report["branches"]
    assert card["recipe"]["seed"] == 3
    assert card["recipe"]["training"]["epochs"] == 2
    assert card["test"].keys() == report["test"].keys()
    assert len(card["digest"]) == 64
    assert model.calibrations is not None
    assert model.forecast(history(), [Intervention()])[0].annealed.median == 0.0
    assert 0 < len(load_rehearsal(folder / "model")) <= 1000


def test_again_it_gives_the_same_files(
    patched: Any, built: tuple[Path, dict[str, Any], list[str]]
) -> None:
    folder, report, _ = built
    before = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    again = build(folder, RECIPE, make_run)
    assert again["generated"]["made_now"] == 0
    assert again["test"] == report["test"]
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == before


def test_a_run_that_cannot_be_made_ends_it(patched: Any, tmp_path: Path) -> None:
    def never(overrides: Any) -> Any:
        raise RuntimeError("no such luck")

    sentence = rf"found {TRUNKS} that failed, for instance t.*: .*no such luck"
    with pytest.raises(UserError, match=sentence):
        build(tmp_path, RECIPE, never)


def test_too_few_trunks_are_refused() -> None:
    with pytest.raises(UserError, match=r"trunks must be at least 60, .*, found 59"):
        Recipe(trunks=59)


@pytest.mark.parametrize("json_too", [True, False])
def test_a_mistake_on_the_command_line_costs_a_sentence(
    json_too: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["worldmodel", "build", "--trunks", "5", "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, *(["--json"] if json_too else [])]) == cli.USER_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("trainenv: trunks must be at least 60")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--trunks", "many"], ["--size", "3"], ["--workers"]])
def test_what_does_not_parse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["worldmodel", "build", "--json", *arguments])
    assert ended.value.code == cli.USER_ERROR
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_command_builds_and_says_so(
    interrupted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def quickly(folder: Path, recipe: Recipe, run: Any, **more: Any) -> dict[str, Any]:
        asked.update(folder=folder, recipe=recipe, **more)
        return {"folder": str(folder), "interrupted": interrupted, "trunks": 7}

    monkeypatch.setattr(building, "build", quickly)
    arguments = [
        "worldmodel",
        "build",
        "--trunks",
        "64",
        "--workers",
        "1",
        "--seed",
        "9",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert cli.main(arguments) == (cli.INTERRUPTED if interrupted else 0)
    assert (asked["recipe"].trunks, asked["recipe"].workers, asked["recipe"].seed) == (64, 1, 9)
    assert asked["folder"] == tmp_path
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path)
