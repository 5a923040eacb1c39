"""The registered environments' entry points.

Functions, no classes: Gymnasium compares a render mode with a class's list of them, and warns of it
before the environment can refuse it in a sentence.
"""

from __future__ import annotations

from typing import Any

from trainenv.envs.synthetic import SyntheticEnv
from trainenv.envs.training import TrainingEnv


def training(**kwargs: Any) -> TrainingEnv:
    """Make a training environment."""
    return TrainingEnv(**kwargs)


def synthetic(**kwargs: Any) -> SyntheticEnv:
    """Make a synthetic environment."""
    return SyntheticEnv(**kwargs)
