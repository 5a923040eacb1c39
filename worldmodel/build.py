"""From nothing to a world model: generate, train, calibrate, evaluate, write the files.

Every part is resumable or short.

| in the folder | |
|---|---|
| `branches/` | the data set; what is there is not made again |
| `model/` | `model.safetensors` and `card.json`, as the package ships them |
| `report.json` | the evaluation on trunks that nothing was fitted on |

The trunks are split once, by setting: on some the networks are trained, on others they are
calibrated, on the rest judged.
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
from trainenv.worldmodel.serialization import load, save
from trainenv.worldmodel.training import Training, fit

SHARES = {"train": 0.6, "calibrate": 0.2, "test": 0.2}
_REHEARSED = 1000  # branches that come with a model


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a model is made of. The same recipe gives the same model, on the same kind of machine.

    Args:
        trunks: runs to branch.
        seed: of trunks, splits and networks.
        workers: processes that generate.
        design: of the branches.
        training: of the networks.
        architecture: of the networks.

    Raises:
        UserError: too few trunks to train, calibrate and judge on.
    """

    trunks: int = 200
    seed: int = 0
    workers: int = 2
    design: Design = field(default_factory=Design)
    training: Training = field(default_factory=Training)
    architecture: Architecture = field(default_factory=Architecture)

    def __post_init__(self) -> None:
        if self.trunks < 60:
            # 9 trunks are the fewest that give a finite interval of 90 %, 12 are a fifth of 60.
            raise UserError(
                f"trunks must be at least 60, to have some to calibrate and to judge on, found {self.trunks}"
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
    """Do all of it; returns the report, with `interrupted` where `stop` ended it: call it again to go on.

    Args:
        folder: of everything.
        recipe: what to make.
        make_run: configuration → run, at the top of a module.
        fold: puts runs side by side; see `generate`.
        say: told of each part as it begins.
        progress: told of each trunk.
        stop: asked between trunks and parts.

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
        name, why = next(iter(made.failed.items()))
        raise UserError(
            f"{len(made.failed)} runs could not be branched, {name} for one: {why}; mend that and build again"
        )
    if made.interrupted or stop():
        return {
            "folder": str(folder),
            "interrupted": True,
            "trunks": len(made.there) + len(made.made),
        }
    say("reading them")
    data = Dataset.open(folder / "branches")
    examples = Examples.of(data)
    say("training the networks")
    model, report = assemble(data, examples, recipe, say=say)
    report |= {
        "folder": str(folder),
        "interrupted": False,
        "seconds": round(time.perf_counter() - started, 1),
    }
    report |= {"generated": _generated(made)}
    save(model, folder / "model", _rehearsal(examples, recipe))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def assemble(
    data: Dataset,
    examples: Examples,
    recipe: Recipe,
    *,
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[Model, dict[str, Any]]:
    """Train, calibrate and judge on a data set that is there: the model with its card, and the report.

    Args:
        data: the data set.
        examples: of it, `Examples.of(data)`.
        recipe: what to make.
        say: told of each part as it begins.
    """
    parts = split(data, recipe.seed)
    training = replace(recipe.training, seed=recipe.seed)
    networks = fit(examples.among(parts["train"]), training, recipe.architecture)
    say("calibrating and judging")
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
    card = {"data": _data(data, parts), "recipe": _plain(recipe)} | {
        name: report[name] for name in ("test", "test_picks")
    }
    return Model(model.networks, model.calibrations, card), report


def rounded(model: Model) -> Model:
    """The model as it will be read back from its files: calibrated and judged is what is shipped."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load(save(model, folder))


def split(data: Dataset, seed: int) -> dict[str, tuple[str, ...]]:
    """The names of the trunks to train, calibrate and judge on."""
    return by_trunk(data.trunks, SHARES, seed=seed)


def _rows(examples: Examples, names: Collection[str]) -> NDArray[np.bool_]:
    wanted = np.isin(examples.trunks, list(names))
    return wanted[examples.trunk]


def _of_picks(report: Mapping[str, Any]) -> dict[str, Any]:
    """Of a report, how intervals made for picks cover picks."""
    return {target: report[target]["intervals"]["selected"] for target in TARGETS}


def _rehearsal(examples: Examples, recipe: Recipe) -> Examples:
    """Branches drawn from those that the networks learned from, their controls among them."""
    rng = np.random.default_rng([recipe.seed, 1])
    chosen = rng.permutation(len(examples))[:_REHEARSED]
    return examples.where(np.sort(chosen))


def _data(data: Dataset, parts: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What a card says of the data."""
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
    return {
        "trunks": len(made.made) + len(made.there),
        "made_now": len(made.made),
        "steps": made.steps,
        "core_seconds": round(made.core_seconds, 1),
        "steps_per_core_second": round(made.steps / made.core_seconds, 1)
        if made.core_seconds
        else None,
    }
