"""Building of a path model: collect, fit, collect with the model, fit again, evaluate, write.

The first round has random paths. Each later round is collected with the model of the rounds before
(`shooting`), so that the states that planning leads to are known. Collecting resumes where it was
interrupted; fitting takes minutes.

| in the folder | content |
|---|---|
| `round-0/`, `round-1/` … | data of each round, see `store` |
| `model-0/` … | path model fitted to the rounds so far, as the next round used it |
| `paths.safetensors`, `paths.json` | the final model |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.types import UserError
from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.paths.collect import DECISIONS
from trainenv.worldmodel.paths.evaluate import calibrated_width, evaluate, predict
from trainenv.worldmodel.paths.fit import Fitting, fit
from trainenv.worldmodel.paths.generate import Collected, Fold, MakeRun, generate
from trainenv.worldmodel.paths.groups import sample_groups
from trainenv.worldmodel.paths.model import PathValueModel
from trainenv.worldmodel.paths.serialization import load_paths, save_paths
from trainenv.worldmodel.paths.shooting import RandomShooting
from trainenv.worldmodel.paths.table import PathTable

_HELD = 8  # one group in so many is held out, to evaluate and to calibrate


@dataclass(frozen=True, kw_only=True)
class PathRecipe:
    """Settings of a build.

    Args:
        groups: Number of groups of each round; the first has random paths.
        seed: Random seed of groups, paths and networks.
        workers: Number of processes that collect.
        fitting: Hyperparameters of the fit.

    Raises:
        UserError: There is no round, or too few groups to hold some out.
    """

    groups: tuple[int, ...] = (156, 185, 84, 123)
    seed: int = 7
    workers: int = 2
    fitting: Fitting = field(default_factory=Fitting)

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < _HELD:
            raise UserError(
                f"groups must be at least one number of {_HELD} or more, found {self.groups!r}"
            )


def build_paths(
    folder: str | Path,
    recipe: PathRecipe,
    make_run: MakeRun,
    fold: Fold,
    *,
    say: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[int, Collected], None] = lambda round, report: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Build a path model and return its report; `interrupted` is True if `stop` ended it.

    Args:
        folder: Folder of the data and the model.
        recipe: Settings of the build.
        make_run: Function from overrides of the configuration to a run, at the top of a module.
        fold: Function that trains runs side by side, at the top of a module.
        say: Function called with a sentence when a part begins.
        progress: Function called with the number of the round and its report after each group.
        stop: Function that returns True to interrupt.

    Raises:
        UserError: The folder holds something else, or groups failed.
    """
    folder = Path(folder)
    rounds: list[Path] = []
    report: dict[str, Any] = {}
    for number, count in enumerate(recipe.groups):
        here = folder / f"round-{number}"
        policy = RandomShooting(folder=str(folder / f"model-{number - 1}")) if number else None
        say(f"round {number}: training {count} groups of runs")
        made = generate(
            here,
            sample_groups(count, seed=recipe.seed + 1000 * number),
            make_run,
            fold,
            policy=policy,
            workers=recipe.workers,
            progress=lambda report, number=number: progress(number, report),  # type: ignore[misc]
            stop=stop,
        )
        if made.failed:
            name, reason = next(iter(made.failed.items()))
            raise UserError(
                f"expected {count} groups, found {len(made.failed)} that failed, for instance "
                f"{name}: {reason}; correct the cause and build again"
            )
        if made.interrupted:
            return {"interrupted": True, "folder": str(folder)}
        rounds.append(here)
        target = folder / f"model-{number}"
        if load_paths(target) is None or number + 1 == len(recipe.groups):
            say(f"round {number}: fitting the model")
            model, report = fitted(rounds, recipe.fitting)
            save_paths(model, target, report)
            if number + 1 == len(recipe.groups):
                save_paths(model, folder, report)
    return {"interrupted": False, "folder": str(folder), **report}


def fitted(rounds: Sequence[Path], how: Fitting) -> tuple[PathValueModel, dict[str, Any]]:
    """Fit, calibrate and evaluate a model on the data of some rounds; return it with its report.

    The held-out groups are halved: one half calibrates the intervals, the other evaluates.
    """
    table = PathTable.of(rounds)
    part = parts(table.group, how.seed)
    ensemble = fit(table.where(part == 0), how)
    held = table.where(part == 1)
    width = calibrated_width(predict(ensemble, held), held)
    report = {
        "groups": len(np.unique(table.group)),
        "examples": len(table),
        "fitting": asdict(how),
        "test": evaluate(ensemble, table.where(part == 2), DECISIONS, width),
    }
    return PathValueModel(ensemble, width), report


def parts(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return for each example 0 to fit, 1 to calibrate, 2 to evaluate; a group is in one part."""
    names = np.unique(groups)
    order = stream(seed, "held").permutation(len(names))
    held = max(2, len(names) // _HELD)
    of_group = np.zeros(len(names), dtype=np.int64)
    of_group[order[:held]] = 1 + np.arange(held) % 2
    return of_group[np.searchsorted(names, groups)]
