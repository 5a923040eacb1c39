"""Building of a world model: generate data, train, calibrate, evaluate, write the files.

Generating resumes where it was interrupted; the other parts are short. A model has two parts: the
networks that forecast branches over a horizon, and the model that values paths of the learning rate
to the end of the run (`worldmodel.paths`).

| in the folder | content |
|---|---|
| `branches/` | data set; trunks that exist are not generated again |
| `paths/` | data and models of whole paths, by rounds; see `worldmodel.paths.build` |
| `model/` | the files of the model, as shipped with the package |
| `report.json` | evaluation on trunks that nothing was fitted on |

The trunks are split once, stratified by setting: one part trains the networks, one calibrates them,
one evaluates them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.distributed import LOCAL
from trainenv.rollouts.group import InTurn
from trainenv.types import Fold, UserError
from trainenv.worldmodel.calibration import Calibrations
from trainenv.worldmodel.dataset import (
    Dataset,
    Design,
    Generated,
    MakeRun,
    Progress,
    by_trunk,
    generate,
    sample,
)
from trainenv.worldmodel.evaluation import evaluate, seed_noise
from trainenv.worldmodel.examples import TARGETS, Examples
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.networks import Architecture
from trainenv.worldmodel.paths.build import PathRecipe, build_paths
from trainenv.worldmodel.paths.model import PathValueModel
from trainenv.worldmodel.paths.serialization import load_paths
from trainenv.worldmodel.serialization import load, save
from trainenv.worldmodel.training import Training, fit

SHARES = {"train": 0.6, "calibrate": 0.2, "test": 0.2}
_REHEARSED = 1000  # training branches that are saved with a model


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a build; the same recipe gives the same model on the same kind of machine.

    Args:
        trunks: Number of runs to branch.
        seed: Random seed of trunks, splits and networks.
        workers: Number of processes that generate data.
        executor: Place of the processes, see `trainenv.distributed.executors`.
        design: Design of the branches.
        training: Hyperparameters of the training.
        architecture: Sizes of the networks.
        paths: Settings of the model of whole paths; None to build none.

    Raises:
        UserError: there are too few trunks to train, calibrate and evaluate on.
    """

    trunks: int = 200
    seed: int = 0
    workers: int = 2
    executor: str = LOCAL
    design: Design = field(default_factory=Design)
    training: Training = field(default_factory=Training)
    architecture: Architecture = field(default_factory=Architecture)
    paths: PathRecipe | None = field(default_factory=PathRecipe)

    def __post_init__(self) -> None:
        if self.trunks < 60:
            # 9 trunks are the fewest that give a finite 90 % interval; 12 are a fifth of 60.
            raise UserError(
                "trunks must be at least 60, to have some to calibrate and to evaluate on, "
                f"found {self.trunks}"
            )


def build(
    folder: str | Path,
    recipe: Recipe,
    make_run: MakeRun,
    *,
    fold: Fold | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Build a world model and return its report.

    If `stop` ended the build, the report has `interrupted`: True; call again to resume.

    Args:
        folder: Folder of the data set, the model and the report.
        recipe: Settings of the build.
        make_run: Function that makes a run from a configuration, at the top of a module.
        fold: Function that trains runs together in one batch; see `generate`.
        say: Function called with a sentence when a part begins.
        progress: Function called after each trunk.
        stop: Function that returns True to interrupt; it is called between trunks and parts.

    Raises:
        UserError: the folder holds something else, or trunks failed.
    """
    folder = Path(folder)
    started = time.perf_counter()
    say(f"generating branches of {recipe.trunks} runs")
    made = generate(
        folder / "branches",
        sample(recipe.trunks, seed=recipe.seed),
        make_run,
        design=recipe.design,
        fold=fold,
        workers=recipe.workers,
        progress=progress,
        stop=stop,
    )
    if made.failed:
        name, reason = next(iter(made.failed.items()))
        raise UserError(
            f"expected branches of {recipe.trunks} runs, found {len(made.failed)} that failed, "
            f"for instance {name}: {reason}; correct the cause and build again"
        )
    if made.interrupted or stop():
        return {
            "folder": str(folder),
            "interrupted": True,
            "trunks": len(made.there) + len(made.made),
        }
    paths: PathValueModel | None = None
    if recipe.paths is not None:
        built = build_paths(
            folder / "paths", recipe.paths, make_run, fold or InTurn, say=say, stop=stop
        )
        if built["interrupted"]:
            return {
                "folder": str(folder),
                "interrupted": True,
                "trunks": len(made.there) + len(made.made),
            }
        paths = load_paths(folder / "paths")
    say("reading the branches")
    data = Dataset.open(folder / "branches")
    examples = Examples.of(data)
    say("training the networks")
    model, report = assemble(data, examples, recipe, say=say, paths=paths)
    report |= {
        "folder": str(folder),
        "interrupted": False,
        "seconds": round(time.perf_counter() - started, 1),
        "generated": _generated(made),
    }
    save(model, folder / "model", _rehearsal(examples, recipe))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def assemble(
    data: Dataset,
    examples: Examples,
    recipe: Recipe,
    *,
    say: Callable[[str], None] = lambda sentence: None,
    paths: PathValueModel | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Train, calibrate and evaluate a model on a data set.

    Args:
        data: Data set of branches.
        examples: Examples of this data set, `Examples.of(data)`.
        recipe: Settings of the build.
        say: Function called with a sentence when a part begins.
        paths: Model of whole paths to keep with it; None for none.

    Returns:
        The model with its card, and the report.
    """
    parts = split(data, recipe.seed)
    training = replace(recipe.training, seed=recipe.seed)
    networks = fit(examples.among(parts["train"]), training, recipe.architecture)
    say("calibrating and evaluating")
    bare = rounded(Model(networks))
    held = examples.among(parts["calibrate"])
    model = Model(bare.networks, Calibrations.fit(held, bare.raw(held)))
    test = examples.among(parts["test"])
    noise = seed_noise(examples)[_rows(examples, parts["test"])]
    report = {
        "branches": len(examples),
        "trunks": {part: len(names) for part, names in parts.items()},
        "parameters": sum(p.numel() for p in networks.parameters()),
        "test": evaluate(test, model.predict(test), noise=noise, seed=recipe.seed),
        "test_picks": _of_picks(
            evaluate(test, model.predict(test, picks=True), noise=noise, seed=recipe.seed)
        ),
    }
    card = {
        "data": _data(data, parts),
        "recipe": _plain(recipe),
        "test": report["test"],
        "test_picks": report["test_picks"],
    }
    return Model(model.networks, model.calibrations, card, paths=paths), report


def rounded(model: Model) -> Model:
    """Return the model as read back from its files, so that the shipped model is evaluated."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load(save(model, folder))


def split(data: Dataset, seed: int) -> dict[str, tuple[str, ...]]:
    """Return the names of the trunks to train, calibrate and evaluate on."""
    return by_trunk(data.trunks, SHARES, seed=seed)


def _rows(examples: Examples, names: Collection[str]) -> NDArray[np.bool_]:
    wanted = np.isin(examples.trunks, list(names))
    return wanted[examples.trunk]


def _of_picks(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return from a report the coverage of picked candidates, by target."""
    return {target: report[target]["intervals"]["selected"] for target in TARGETS}


def _rehearsal(examples: Examples, recipe: Recipe) -> Examples:
    """Sample the branches to rehearse, controls included."""
    rng = np.random.default_rng([recipe.seed, 1])
    chosen = rng.permutation(len(examples))[:_REHEARSED]
    return examples.where(np.sort(chosen))


def _data(data: Dataset, parts: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the card's description of the data."""
    return {
        "trunks": {part: len(names) for part, names in parts.items()},
        "snapshots": len(data.snapshots),
        "branches": len(data.branches),
        "parameters": [int(data.trunks["parameters"].min()), int(data.trunks["parameters"].max())],
        "budgets": [int(data.trunks["budget"].min()), int(data.trunks["budget"].max())],
        "widths": sorted({int(width) for width in data.trunks["width"]}),
        "corpora": sorted({str(corpus) for corpus in data.trunks["corpus"]}),
        "settings": sorted({str(setting) for setting in data.trunks["setting"]}),
    }


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {
        "trunks": recipe.trunks,
        "seed": recipe.seed,
        "design": recipe.design.to_json(),
        "training": asdict(recipe.training),
    }


def _generated(made: Generated) -> dict[str, Any]:
    speed = None
    if made.core_seconds:
        speed = round(made.steps / made.core_seconds, 1)
    return {
        "trunks": len(made.made) + len(made.there),
        "made_now": len(made.made),
        "steps": made.steps,
        "core_seconds": round(made.core_seconds, 1),
        "steps_per_core_second": speed,
    }
