"""Protocol of an agent, whether it is written by hand or trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]
Action = NDArray[np.integer[Any]]


@runtime_checkable
class Agent(Protocol):
    """Takes a decision about a run every `environment.decision_steps` optimizer steps.

        class Careful:
            def act(self, observation, info):
                action = np.zeros(6, dtype=np.int64)          # leaves the run alone
                if info["fired"] and info["action_masks"][1]:
                    action[0] = 1                             # 20 % less learning rate
                return action

    `agents.play` calls it in an environment, and `agents.AgentCallback` in a run that
    `trainenv.train` trains. An agent with a state may have `state_dict() -> dict` of JSON values
    and `load_state_dict(state)`: then a resumed run ends with the same bits as one that was never
    interrupted.
    """

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        """Return the action: six whole numbers, see `trainenv.interventions`.

        All zeros leaves the run alone.

        Args:
            observation: Features of the run, float32 [32], see `trainenv.envs.observation`.
            info: Mapping with `step` (optimizer steps completed), `validation_loss` (now, nats per
                token), `fired` (number of alarms of the uncertainty index since the last decision),
                `action_masks` (bool [18], legal values, one part after the other), `masked` (parts
                of the last action that were left out because they were illegal) and `flops` (FLOPs
                spent, by purpose).
        """
        ...
