"""Planners: each ranks futures of a run through one contract, `trainenv.types.Planner`.

    plan = planners.make("grid", candidates=64).plan(problem)
    plan.best.interventions, plan.best.score, plan.cost

Each planner has its own file. Your own planner is a frozen dataclass with a method `plan`; an entry
point makes it available by name:

    [project.entry-points."trainenv.planners"]        # in your pyproject.toml
    mine = "my_package:MyPlanner"

`planners.PlanBuilder` keeps most of the contract for you, and `planners.testing` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trainenv.planners.adaptive_width import AdaptiveWidth, risk_of
from trainenv.planners.autolrs import AutoLRS
from trainenv.planners.bandit import Bandit
from trainenv.planners.bayes import Bayes
from trainenv.planners.cem import CEM
from trainenv.planners.curve_pruner import CurvePruner
from trainenv.planners.grid import Grid
from trainenv.planners.mcts import MCTS
from trainenv.planners.pbt import PBT
from trainenv.planners.proposals import hypergradient
from trainenv.planners.random_search import RandomSearch
from trainenv.planners.shapes import Shapes
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.score import Score
from trainenv.tools.checks import choice, names
from trainenv.tools.error_text import describe_error
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
    "shapes": Shapes,
    "cem": CEM,
}
NAMES: tuple[str, ...] = tuple(PLANNERS)

__all__ = [
    "CEM",
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
    "Shapes",
    "hypergradient",
    "installed",
    "make",
    "risk_of",
]


def installed() -> dict[str, EntryPoint]:
    """Return the planners of other packages by name, not yet loaded.

    Where names clash, the planners of this package win.
    """
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in PLANNERS}


def make(name: str, **hyperparameters: Any) -> Planner:
    """Make the planner of that name, of this package or an installed one.

    Args:
        name: Name of the planner: one of `NAMES` or of `installed()`.
        hyperparameters: Hyperparameters by name; the others keep their defaults.

    Raises:
        UserError: There is no such planner or hyperparameter (the error suggests the nearest one),
            a value is out of range, or an installed planner cannot be loaded or has no `plan`.
    """
    kind = PLANNERS.get(name) or _load(name)
    if is_dataclass(kind):
        names(name, kind, hyperparameters)
    planner = kind(**hyperparameters)
    if not isinstance(planner, Planner):
        raise UserError(
            f"the entry point {name!r} must make a planner, found {planner!r}; "
            "give it a method plan(problem)"
        )
    return planner


def _load(name: str) -> Any:
    others = installed()
    choice("planner", name, (*NAMES, *others))
    try:
        return others[name].load()
    except Exception as error:
        raise UserError(
            f"the planner {name!r} ({others[name].value}) cannot be loaded: "
            f"{describe_error(error)}; reinstall its package"
        ) from error


if __name__ == "planners":  # in a checkout: one copy of every class
    from trainenv.tools.checkout import alias

    alias(__name__)
