"""The search methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.agents.thresholds.cma_es import CmaEs
from trainenv.agents.thresholds.contract import ThresholdMethod
from trainenv.agents.thresholds.grid import Grid
from trainenv.agents.thresholds.ppo import PPO
from trainenv.agents.thresholds.random_search import RandomSearch
from trainenv.agents.thresholds.tpe import TPE
from trainenv.agents.thresholds.ucb import UCB
from trainenv.tools.checks import choice, names

METHODS: Mapping[str, type[Any]] = {
    "grid": Grid,
    "random": RandomSearch,
    "cma-es": CmaEs,
    "ucb": UCB,
    "tpe": TPE,
    "ppo": PPO,
}


def make(name: str, **hyperparameters: Any) -> ThresholdMethod:
    """Make the method of that name.

    Args:
        name: Name of the method, one of `METHODS`.
        hyperparameters: Hyperparameters by name; the others keep their defaults.

    Raises:
        UserError: There is no such method or hyperparameter, or a value is out of range.
    """
    choice("method", name, METHODS)
    names(name, METHODS[name], hyperparameters)
    made: ThresholdMethod = METHODS[name](**hyperparameters)
    return made
