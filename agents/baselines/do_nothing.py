"""Agent that leaves the run alone: the baseline of every other agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainenv.agents.contract import Action, Observation


@dataclass(frozen=True)
class DoNothing:
    """Leaves the run alone."""

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        """Return all zeros, int64 [6]."""
        return np.zeros(6, dtype=np.int64)
