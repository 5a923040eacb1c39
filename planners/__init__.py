"""Planners: each ranks futures of a run, through one contract (`trainenv.types.Planner`).

    plan = planners.make("grid", candidates=64).plan(problem)
    plan.best.interventions, plan.best.score, plan.cost

One file a planner. A planner of your own is a frozen dataclass with a method `plan`, found by name
through an entry point:

    [project.entry-points."trainenv.planners"]        # in your pyproject.toml
    mine = "my_package:MyPlanner"

`trainenv.planners.testing` checks that it keeps the contract, and `planners.PlanBuilder` keeps most
of it for you.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trainenv.planners.adaptive_width import AdaptiveWidth, risk_of
from trainenv.planners.autolrs import AutoLRS
from trainenv.planners.bandit import Bandit
from trainenv.planners.bayes import Bayes
from trainenv.planners.curve_pruner import CurvePruner
from trainenv.planners.grid import Grid
from trainenv.planners.mcts import MCTS
from trainenv.planners.pbt import PBT
from trainenv.planners.proposals import hypergradient
from trainenv.planners.random_search import RandomSearch
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.score import Score
from trainenv.tools.spelling import nearest
from trainenv.types import Planner, UserError

GROUP = "trainenv.planners"
PLANNERS: Mapping[str, type[Any]] = {
    "grid": Grid,
    "bandit": Bandit,
    "bayes": Bayes,
    "mcts": MCTS,
    "pbt": PBT,
    "random": RandomSearch,
    "autolrs": AutoLRS,
}
NAMES: tuple[str, ...] = tuple(PLANNERS)

__all__ = [
    "GROUP",
    "MCTS",
    "NAMES",
    "PBT",
    "PLANNERS",
    "AdaptiveWidth",
    "AutoLRS",
    "Bandit",
    "Bayes",
    "CurvePruner",
    "Grid",
    "PlanBuilder",
    "RandomSearch",
    "Score",
    "hypergradient",
    "installed",
    "make",
    "risk_of",
]


def installed() -> dict[str, EntryPoint]:
    """Planners of other packages, by name, not loaded yet. Ours go first where names clash."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in PLANNERS}


def make(name: str, **hyperparameters: Any) -> Planner:
    """The planner of that name, ours or one that is installed; what is left out of its hyperparameters is at its default.

    Raises:
        UserError: no such planner or hyperparameter (the nearest valid one is named), a value out
            of range, or an installed planner that cannot be loaded or is none.
    """
    kind = PLANNERS[name] if name in PLANNERS else _loaded(name)
    if is_dataclass(kind):
        valid = [field.name for field in fields(kind)]
        for wrong in hyperparameters:
            if wrong not in valid:
                raise UserError(
                    f"{name} has no hyperparameter {wrong!r}{nearest(wrong, valid)}; it has: {', '.join(valid) or 'none'}"
                )
    planner = kind(**hyperparameters)
    if not isinstance(planner, Planner):
        raise UserError(
            f"the entry point {name!r} must make a planner, found {planner!r}; give it a method plan(problem)"
        )
    return planner


def _loaded(name: str) -> Any:
    others = installed()
    if name not in others:
        names = (*NAMES, *others)
        raise UserError(
            f"planner must be one of {', '.join(names)}, found {name!r}{nearest(name, names)}"
        )
    try:
        return others[name].load()
    except Exception as error:
        value = others[name].value
        raise UserError(
            f"the planner {name!r} ({value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error


if __name__ == "planners":  # in a checkout: one copy of every class
    from trainenv.tools.checkout import alias

    alias(__name__)
