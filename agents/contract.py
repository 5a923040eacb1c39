"""What an agent is: of your own, ours or one that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]
Action = NDArray[np.integer[Any]]


@runtime_checkable
class Agent(Protocol):
    """Whatever decides what is done to a run, a decision every `environment.decision_steps` optimizer steps.

        class Careful:
            def act(self, observation, info):
                action = np.zeros(6, dtype=np.int64)          # does nothing
                if info["fired"] and info["action_masks"][1]:
                    action[0] = 1                             # 20 % less learning rate
                return action

    Called by `agents.play` in an environment and by `agents.AgentCallback` in a run that
    `trainenv.loop.train` drives. An agent that remembers something of the run may have
    `state_dict() -> dict` of JSON values and `load_state_dict(state)`: a driven run that was killed
    then goes on as if nothing had been.
    """

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        """The action vector of six whole numbers, see `trainenv.interventions`; all zeros does nothing.

        Args:
            observation: float32 of shape (32,), see `trainenv.envs.observation.Features`.
            info: `step` (optimizer steps completed), `validation_loss` (now, nats per token),
                `fired` (times that the uncertainty index fired since the last decision),
                `action_masks` (bool, the legal values of each part one part after another),
                `masked` (the parts of the last action that were left out, being illegal) and
                `flops` (the ledger).
        """
        ...
