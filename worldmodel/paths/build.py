"""Building of a path model: collect, fit, collect with the model, fit again, evaluate, write.

The first round has random paths. Each later round is collected with the model of the rounds before
(`shooting`), so that the states that planning leads to are known. Rounds of long runs follow, the
first of them again with random paths. Collecting resumes where it was interrupted; fitting takes
minutes.

| in the folder | content |
|---|---|
| `round-0/`, `round-1/` … | data of each round, see `store` |
| `model-0/` … | path model fitted to the rounds so far, as the next round used it |
| `paths.safetensors`, `paths.json` | the final model |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.distributed import LOCAL
from trainenv.types import UserError
from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.paths.collect import DECISIONS
from trainenv.worldmodel.paths.evaluate import calibrated_width, evaluate, predict
from trainenv.worldmodel.paths.fit import Fitting, fit
from trainenv.worldmodel.paths.generate import Collected, Fold, MakeRun, generate
from trainenv.worldmodel.paths.groups import sample_groups
from trainenv.worldmodel.paths.inputs import Floats
from trainenv.worldmodel.paths.model import PathValueModel
from trainenv.worldmodel.paths.network import LEVELS
from trainenv.worldmodel.paths.serialization import load_paths, save_paths
from trainenv.worldmodel.paths.shooting import RandomShooting
from trainenv.worldmodel.paths.table import PathTable

_FEWEST = 8  # groups of a round
_FOLDS = 4  # parts of the groups that are held out in turn, to evaluate and to calibrate


@dataclass(frozen=True, kw_only=True)
class PathRecipe:
    """Settings of a build.

    Args:
        groups: Number of groups of each round; the first has random paths.
        long_groups: Number of groups of each round of long runs; the first has random paths.
        seed: Random seed of groups, paths and networks.
        workers: Number of processes that collect.
        executor: Place of the processes, see `trainenv.distributed.executors`.
        fitting: Hyperparameters of the fit.

    Raises:
        UserError: There is no round, or a round has too few groups.
    """

    groups: tuple[int, ...] = (156, 185, 84, 123)
    long_groups: tuple[int, ...] = (26, 30)
    seed: int = 7
    workers: int = 2
    executor: str = LOCAL
    fitting: Fitting = field(default_factory=Fitting)

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < _FEWEST:
            raise UserError(
                f"groups must be at least one number of {_FEWEST} or more, found {self.groups!r}"
            )
        if min(self.long_groups, default=1) < 1:
            raise UserError(f"long_groups must be numbers of 1 or more, found {self.long_groups!r}")


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
    counts = (*recipe.groups, *recipe.long_groups)
    for number, count in enumerate(counts):
        here = folder / f"round-{number}"
        long = number >= len(recipe.groups)
        policy = None
        if number not in (0, len(recipe.groups)):
            policy = RandomShooting(folder=str(folder / f"model-{number - 1}"))
        say(f"round {number}: training {count} groups of {'long ' if long else ''}runs")
        made = generate(
            here,
            sample_groups(count, seed=recipe.seed + 1000 * number, long=long),
            make_run,
            fold,
            policy=policy,
            workers=recipe.workers,
            executor=recipe.executor,
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
        if load_paths(target) is None or number + 1 == len(counts):
            say(f"round {number}: fitting the model")
            if number + 1 < len(counts):
                save_paths(PathValueModel(fit(PathTable.of(rounds), recipe.fitting)), target, {})
                continue
            model, report = fitted(rounds, recipe.fitting)
            save_paths(model, target, report)
            save_paths(model, folder, report)
    return {"interrupted": False, "folder": str(folder), **report}


def fitted(rounds: Sequence[Path], how: Fitting) -> tuple[PathValueModel, dict[str, Any]]:
    """Fit a model to the data of some rounds, and return it with its report.

    The intervals are calibrated, and the report is made, on predictions of models that were fitted
    without the group they predict. The states that planning leads to are in the later rounds.
    """
    table = PathTable.of(rounds)
    found, blind = predict_held_out(table, how)
    begun = table.decision > 0
    width = calibrated_width(found[begun], table.where(begun))
    report = {
        "groups": len(np.unique(table.group)),
        "examples": len(table),
        "fitting": asdict(how),
        "test": evaluate(found, blind, table, DECISIONS, width),
    }
    return PathValueModel(fit(table, how), width), report


def predict_held_out(table: PathTable, how: Fitting) -> tuple[Floats, Floats]:
    """Return predictions for each example by a model that was fitted without its group.

    These models have half the members and take a third of the epochs, which a build has time for.

    Returns:
        Mean and quantiles [n, 1 + Q], and the same by a model that is shown nothing of the run.
    """
    lighter = replace(
        how,
        epochs=max(1, how.epochs // 3),
        shape=replace(how.shape, members=max(1, how.shape.members // 2)),
    )
    fold = folds(table.group, how.seed)
    found = np.zeros((len(table), 1 + len(LEVELS)))
    blind = np.zeros_like(found)
    for number in range(_FOLDS):
        held = fold == number
        ensemble = fit(table.where(~held), lighter)
        found[held] = predict(ensemble, table.where(held))
        blind[held] = predict(ensemble, table.where(held), blind=True)
    return found, blind


def folds(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return for each example the number of its fold; a group is in one fold."""
    names = np.unique(groups)
    order = stream(seed, "held").permutation(len(names))
    of_group = np.zeros(len(names), dtype=np.int64)
    of_group[order] = np.arange(len(names)) % _FOLDS
    return of_group[np.searchsorted(names, groups)]
