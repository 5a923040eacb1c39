"""Weightings of multi-token prediction, one file each; `targets` holds their contract.

weighting = make("rho1", {"rho1": {"kept_share": 0.5}})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from trainenv.objectives.weightings.critic import Critic
from trainenv.objectives.weightings.low_excess import LowExcess
from trainenv.objectives.weightings.random_selection import RandomSelection
from trainenv.objectives.weightings.rho1 import Rho1
from trainenv.objectives.weightings.shuffled import Shuffled
from trainenv.objectives.weightings.targets import Targets, Weighting
from trainenv.objectives.weightings.uniform import Uniform
from trainenv.tools.checks import choice, names

WeightingName = Literal["uniform", "critic", "rho1", "low_excess", "random", "shuffled"]
WEIGHTINGS: Mapping[WeightingName, Callable[..., Weighting]] = {
    "uniform": Uniform,
    "critic": Critic,
    "rho1": Rho1,
    "low_excess": LowExcess,
    "random": RandomSelection,
    "shuffled": Shuffled,
}
NAMES: tuple[str, ...] = get_args(WeightingName)
_SHUFFLED = ("rho1", "critic")

__all__ = [
    "NAMES",
    "WEIGHTINGS",
    "Critic",
    "LowExcess",
    "RandomSelection",
    "Rho1",
    "Shuffled",
    "Targets",
    "Uniform",
    "Weighting",
    "WeightingName",
    "make",
]


def make(name: str, options: Mapping[Any, Mapping[str, Any]] | None = None) -> Weighting:
    """Make a weighting.

    Args:
        name: Name of the weighting, one of `NAMES`.
        options: Hyperparameters by weighting and name; the others keep their defaults. `shuffled`
            takes `of`, the name of the weighting inside, which has its own hyperparameters here.

    Raises:
        UserError: There is no such weighting or hyperparameter (the error suggests the nearest
            one), or a value is out of range.
    """
    choice("weighting", name, NAMES)
    own = dict((options or {}).get(name, {}))
    kind: Any = WEIGHTINGS[name]  # type: ignore[index]  # which was just checked
    names(name, kind, own)
    if name == "shuffled":
        inner = own.get("of", "rho1")
        choice("the weighting that is shuffled", inner, _SHUFFLED)
        own["of"] = make(inner, options)
    made: Weighting = kind(**own)
    return made
