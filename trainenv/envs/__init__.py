"""Gymnasium environments in which an agent steers a training run, or sets decoding thresholds.

- `TrainingEnv` (`trainenv/GPT2-Tiny-v0`): a real run.
- `SyntheticEnv` (`trainenv/Synthetic-v0`): a run that follows a law, with a known optimum.
- `WorldModelEnv`: a run that a world model imagines, from the history of a real one.
- `DecodingEnv` (`trainenv/Decoding-v0`): the thresholds of speculative decoding.

Actions, observations and action masks are the same for the first three: see
`trainenv.interventions` and `Features`. Each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.envs.decoding import DecodingEnv
    from trainenv.envs.imagined_run import record_histories
    from trainenv.envs.observation import FEATURES, Features
    from trainenv.envs.synthetic import SyntheticEnv
    from trainenv.envs.training import TrainingEnv
    from trainenv.envs.world_model import WorldModelEnv

__all__ = [
    "FEATURES",
    "DecodingEnv",
    "Features",
    "SyntheticEnv",
    "TrainingEnv",
    "WorldModelEnv",
    "record_histories",
]

__getattr__ = lazy(
    __name__,
    {
        "DecodingEnv": ".decoding",
        "FEATURES": ".observation",
        "Features": ".observation",
        "SyntheticEnv": ".synthetic",
        "TrainingEnv": ".training",
        "WorldModelEnv": ".world_model",
        "record_histories": ".imagined_run",
    },
)
