"""Keys that send a run's progress elsewhere: `trackers` and the section `alerts`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainenv.config.section import Config

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class AlertConfig(Config):
    """Alerts at incidents of a run: alarms, non-finite losses, rollbacks, divergence."""

    webhook: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        default=None,
        description="Address (http or https) that gets a JSON text of at most 1 kB by POST at each"
        " incident. By default nothing is sent.",
    )
