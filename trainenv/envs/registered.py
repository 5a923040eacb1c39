"""Entry points of the registered environments.

They are functions, not classes: for a class, Gymnasium checks the render mode itself and warns
before the environment can refuse it with an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainenv.envs.synthetic import SyntheticEnv
from trainenv.envs.training import TrainingEnv

if TYPE_CHECKING:
    from trainenv.envs.decoding import DecodingEnv


def training(**kwargs: Any) -> TrainingEnv:
    """Make a training environment."""
    return TrainingEnv(**kwargs)


def synthetic(**kwargs: Any) -> SyntheticEnv:
    """Make a synthetic environment."""
    return SyntheticEnv(**kwargs)


def decoding(**kwargs: Any) -> DecodingEnv:
    """Make an environment of decoding thresholds."""
    from trainenv.envs.decoding import DecodingEnv

    return DecodingEnv(**kwargs)
