"""The loop as it is measured, and the methods that it is compared with.

    trainenv.train(run, folder, callback=branching())         # planner, model and agent together
    METHODS["autolrs"](config, folder, watch, stop)           # one of the compared methods

This package alone puts agents, planners and world models together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainenv.composition.default_loop import branching
    from trainenv.composition.methods import METHODS, Method

__all__ = ["METHODS", "Method", "branching"]

_LAZY = {
    "METHODS": "trainenv.composition.methods",
    "Method": "trainenv.composition.methods",
    "branching": "trainenv.composition.default_loop",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'trainenv.composition' has no attribute {name!r}")
