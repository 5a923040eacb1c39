"""Accept rules: each decides whether a verified branch may become the run.

| rule | accepts a branch if | ranks by |
|---|---|---|
| `agreement` | its loss agrees with the forecast, and it does no harm | the score of the plan |
| `annealed` | its loss is lower after a brief cool-down | that loss |
| `better` | its loss is lower at once | the measured loss |
| `risk` | its forecast risk is low; its volatility or its loss is lower | the measured loss |

`agreement` is the default: runs that used it ended with the lowest loss (`benchmarks/loop.py`). A
raw loss after a few steps favours low learning rates, which every run reaches anyway as it anneals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from trainenv.tools.spelling import nearest
from trainenv.types import AcceptRule, UserError
from trainenv.verification.rules.agreement import Agreement
from trainenv.verification.rules.annealed import Annealed
from trainenv.verification.rules.better import Better
from trainenv.verification.rules.risk import Risk

RULES: Mapping[str, type[Any]] = {
    "agreement": Agreement,
    "annealed": Annealed,
    "better": Better,
    "risk": Risk,
}
NAMES: tuple[str, ...] = tuple(RULES)

__all__ = ["NAMES", "RULES", "Agreement", "Annealed", "Better", "Risk", "make", "name_of"]


def make(name: str, **hyperparameters: Any) -> AcceptRule:
    """Make the rule of a name.

    Args:
        name: Name of the rule, one of `NAMES`.
        hyperparameters: Hyperparameters that differ from their defaults.

    Raises:
        UserError: The rule has no such name or hyperparameter (the error gives the nearest valid
            one), or a value is out of range.
    """
    if name not in RULES:
        raise UserError(
            f"the accept rule must be one of {', '.join(NAMES)}, "
            f"found {name!r}{nearest(name, NAMES)}"
        )
    valid = [field.name for field in fields(RULES[name])]
    for wrong in hyperparameters:
        if wrong not in valid:
            raise UserError(
                f"{name} has no hyperparameter {wrong!r}{nearest(wrong, valid)}; "
                f"it has: {', '.join(valid)}"
            )
    rule: AcceptRule = RULES[name](**hyperparameters)
    return rule


def name_of(rule: AcceptRule) -> str:
    """Return the name of a rule in records."""
    return next((name for name, kind in RULES.items() if type(rule) is kind), type(rule).__name__)
