"""Put a clip policy in force at the first decision and leave the rest alone.

ZClip (Kumar 2025), ARC (Allouah 2025), SPAM (Huang 2025): see `trainenv.clipping`.
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
    """Asks for a clip policy at every decision; where it is in force the environment masks that, and nothing is done.

    Args:
        policy: `zclip`, `arc`, `none`, or `spam` where the configuration allows it
            (`interventions.allow_spam`).
        codec: of the action space.
    """

    policy: ClipName
    codec: ActionCodec = field(default_factory=ActionCodec)

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        """The action vector that sets the policy, int64 [6]; all zeros where `info["action_masks"]` forbids it."""
        action = self.codec.encode(Intervention(clip=self.policy))
        masks = info.get("action_masks")
        before = sum(self.codec.sizes[:2])  # masks of the parts before the clip policy's
        if masks is not None and not masks[before + action[2]]:
            action[2] = 0
        return action
