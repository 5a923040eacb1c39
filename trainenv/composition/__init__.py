"""The loop as it is measured, and the methods that it is compared with.

    trainenv.train(run, folder, callback=branching())         # planner, model and agent together
    METHODS["autolrs"](config, folder, watch, stop)           # one of the compared methods

This package alone puts agents, planners and world models together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.composition.default_loop import branching
    from trainenv.composition.methods import METHODS, Method

__all__ = ["METHODS", "Method", "branching"]

__getattr__ = lazy(
    __name__,
    {
        "METHODS": "trainenv.composition.methods",
        "Method": "trainenv.composition.methods",
        "branching": "trainenv.composition.default_loop",
    },
)
