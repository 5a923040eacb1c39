"""Rules that say whether a verified branch may become the run.

| rule | accepts a branch if | ranks by |
|---|---|---|
| `risk` | its forecast risk is low, and it lowers volatility or improves the loss | the measured loss |
| `agreement` | what it measured is what the draft had forecast, and it harms nothing | the draft's long view |
| `annealed` | it is better after a brief cool-down | that loss |
| `better` | it is better at once | the measured loss |

`agreement` is the default: it measured best at the end of runs (`benchmarks/loop.py`). A raw loss
after a few steps prefers low learning rates, which every run gets anyway when it anneals.
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
    """The rule of that name; what is left out of its hyperparameters is at its default.

    Raises:
        UserError: no such rule or hyperparameter (the nearest valid one is named), or a value out
            of range.
    """
    if name not in RULES:
        raise UserError(
            f"the accept rule must be one of {', '.join(NAMES)}, found {name!r}{nearest(name, NAMES)}"
        )
    valid = [field.name for field in fields(RULES[name])]
    for wrong in hyperparameters:
        if wrong not in valid:
            raise UserError(
                f"{name} has no hyperparameter {wrong!r}{nearest(wrong, valid)}; it has: {', '.join(valid)}"
            )
    rule: AcceptRule = RULES[name](**hyperparameters)
    return rule


def name_of(rule: AcceptRule) -> str:
    """What a rule is called in records."""
    return next((name for name, kind in RULES.items() if type(rule) is kind), type(rule).__name__)
