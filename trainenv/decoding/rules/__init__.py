"""Rules: each decides which drafted tokens stay, and says if the target's distribution is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.decoding.contract import Rule
from trainenv.decoding.rules.exact import Exact
from trainenv.decoding.rules.lossy import Lossy
from trainenv.decoding.rules.pipelined import Pipelined
from trainenv.tools.checks import choice, names

RULES: Mapping[str, type[Exact] | type[Lossy] | type[Pipelined]] = {
    "exact": Exact,
    "lossy": Lossy,
    "pipelined": Pipelined,
}
NAMES: tuple[str, ...] = tuple(RULES)

__all__ = ["NAMES", "RULES", "Exact", "Lossy", "Pipelined", "make"]


def make(name: str, **hyperparameters: Any) -> Rule:
    """Make the rule of that name.

    Args:
        name: Name of the rule, one of `NAMES`.
        hyperparameters: Hyperparameters by name; the others keep their defaults.

    Raises:
        UserError: There is no such rule or hyperparameter.
    """
    choice("rule", name, NAMES)
    names(name, RULES[name], hyperparameters)
    return RULES[name](**hyperparameters)
