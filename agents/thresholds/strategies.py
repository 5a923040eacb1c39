"""Strategies: everything that can choose how a task is decoded, by name.

    control = STRATEGIES["cma-es"](task, 64, 0)
    task.evaluate(control)["speedup"]

A strategy gets a task, a budget of evaluations on its rows, and a seed, and returns a control of
the draft length. `oracle` alone looks at the held-out rows: it is a bound, not a method.

| name | evaluations | control |
|---|---|---|
| `target-only` | 0 | no draft |
| `default` | 0 | the decoder's default settings |
| `heuristic`, `confidence` | 0 | the dynamic schedules of transformers |
| `grid`, `random`, `cma-es`, `ucb`, `tpe`, `ppo` | the budget | the best fixed settings found |
| `specdec` | the budget | SpecDec++ with the best threshold and length found |
| `oracle` | not counted | the best fixed settings of the held-out rows |

Where the best settings are slower than the target alone, there is no draft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from trainenv.agents.thresholds.contract import (
    Axis,
    ThresholdMethod,
    ThresholdSpace,
    TuningProblem,
    tune,
)
from trainenv.agents.thresholds.controls import (
    DraftControl,
    FixedThresholds,
    ReplayedSchedule,
    ReplayedStop,
    TargetOnly,
)
from trainenv.agents.thresholds.methods import METHODS, make
from trainenv.agents.thresholds.tasks import DecodingTask
from trainenv.decoding.contract import Settings
from trainenv.decoding.schedules import AcceptanceStop, Confidence, Heuristic
from trainenv.decoding.schedules.acceptance_stop import fit_acceptance

Strategy = Callable[[DecodingTask, int, int], DraftControl]
"""Function of a task, a budget of evaluations and a seed."""

_ORACLE = 600  # points of the oracle's lattice
_REFINED = 100  # evaluations of the oracle after the lattice


def target_only(task: DecodingTask, budget: int, seed: int) -> DraftControl:
    """Return the control without a draft."""
    return TargetOnly()


def default_settings(task: DecodingTask, budget: int, seed: int) -> DraftControl:
    """Return the default settings of the decoder."""
    default = Settings()
    return FixedThresholds(settings=replace(default, k=min(default.k, task.k)), rule=task.rule)


def heuristic(task: DecodingTask, budget: int, seed: int) -> DraftControl:
    """Return the ±2/−1 schedule of transformers."""
    return ReplayedSchedule(schedule=Heuristic(most=task.k), lasting=True, seed=seed)


def confidence(task: DecodingTask, budget: int, seed: int) -> DraftControl:
    """Return the dynamic confidence threshold of transformers."""
    return ReplayedSchedule(schedule=Confidence(most=task.k), lasting=True, seed=seed)


def tuned(name: str, task: DecodingTask, budget: int, seed: int) -> DraftControl:
    """Return the best settings that a method of `METHODS` finds."""
    found = tune(make(name, seed=seed), task.problem(budget))
    return task.control(found.best.values, found.best.score)


def specdec(task: DecodingTask, budget: int, seed: int) -> DraftControl:
    """Return SpecDec++ with a predictor of the task, and the best threshold and length found."""
    weights = fit_acceptance(task.trace)

    def control(values: Mapping[str, float]) -> ReplayedStop:
        return ReplayedStop(
            stop=AcceptanceStop(weights=weights, threshold=values["threshold"], k=int(values["k"]))
        )

    def measure(values: Mapping[str, float]) -> dict[str, float]:
        return {"score": control(values).replay(task.trace, task.costs).speedup}

    space = ThresholdSpace(
        axes=(
            Axis(name="threshold", low=0.02, high=1.0),
            Axis(name="k", low=1, high=task.k, log=True, whole=True),
        )
    )
    method: ThresholdMethod = make("ucb", seed=seed)
    found = tune(method, TuningProblem(measure, space, budget=budget))
    if found.best.score < 1:
        return TargetOnly()
    return control(found.best.values)


def oracle(task: DecodingTask, budget: int, seed: int) -> DraftControl:
    """Return the best fixed settings of the held-out rows: a lattice, refined by CMA-ES."""

    def measure(values: Mapping[str, float]) -> dict[str, float]:
        return task.evaluate(task.fixed(values))

    problem = TuningProblem(measure, task.space, budget=_ORACLE)
    tune(make("grid"), problem)
    best = max(problem.trials, key=lambda trial: trial.score)
    refined = TuningProblem(measure, task.space, budget=_REFINED)
    near = tune(make("cma-es", spread=0.05, centre=best.point), refined).best
    if near.score > best.score:
        best = near
    return task.control(best.values, best.score)


STRATEGIES: Mapping[str, Strategy] = {
    "target-only": target_only,
    "default": default_settings,
    "heuristic": heuristic,
    "confidence": confidence,
    **{name: partial(tuned, name) for name in METHODS},
    "specdec": specdec,
    "oracle": oracle,
}
