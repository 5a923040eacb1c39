"""Leave the run alone: what every other agent is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainenv.agents.contract import Action, Observation


@dataclass(frozen=True)
class DoNothing:
    """Does nothing, whatever happens."""

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        """All zeros, int64 [6]."""
        return np.zeros(6, dtype=np.int64)
