"""The uncertainty index."""

from __future__ import annotations

from typing import Any

from trainenv.config import UncertaintyConfig
from trainenv.types import Reading, Telemetry


class UncertaintyIndex:
    """Placeholder until the forecasters are in."""

    def __init__(self, config: UncertaintyConfig) -> None:
        self.config = config

    def update(self, telemetry: Telemetry) -> Reading:
        return Reading()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
