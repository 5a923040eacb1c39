"""Agent that puts one clip policy in force and leaves the rest of the run alone.

The policies are those of `trainenv.clipping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainenv.agents.contract import Action, Observation
from trainenv.interventions import ActionCodec
from trainenv.types import ClipName, Intervention


@dataclass(frozen=True)
class ClipOnly:
    """Sets a clip policy at every decision where it is not in force yet.

    Args:
        policy: Clip policy among `interventions.clips`; `spam` needs `interventions.allow_spam`.
        codec: Codec of the action space.
    """

    policy: ClipName
    codec: ActionCodec = field(default_factory=ActionCodec)

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        """Return the action that sets the policy, int64 [6]; all zeros if it is illegal."""
        action = self.codec.encode(Intervention(clip=self.policy))
        masks = info.get("action_masks")
        before = sum(self.codec.sizes[:2])  # masks of the parts before the clip policy's
        if masks is not None and not masks[before + action[2]]:
            action[2] = 0
        return action
