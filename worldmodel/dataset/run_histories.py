"""What was known of a run at a snapshot of a data set: what whoever steers it would have had in hand.

history = recorded_history(data, row)                    # a `RunHistory`, of the snapshot in that
row of `data.snapshots`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import ScheduleConfig
from trainenv.training import schedules
from trainenv.types import TELEMETRY_FIELDS, Reading, RunHistory, Telemetry
from trainenv.worldmodel.dataset.dataset import Dataset
from trainenv.worldmodel.dataset.trunks import Trunk

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

_READING = tuple(field.name for field in fields(Reading))
_PLAIN = tuple(name for name in TELEMETRY_FIELDS if name not in ("stressors", "reading"))


def recorded_history(data: Dataset, row: int) -> RunHistory:
    """The history of a run up to a snapshot, as `trainenv.training.history.history_of` would have made it of the run itself.

    Args:
        data: the data set.
        row: of the snapshot in `data.snapshots`.
    """
    snapshot: dict[Any, Any] = data.snapshots.iloc[row].to_dict()
    trunk: dict[Any, Any] = data.trunks[data.trunks["trunk"] == snapshot["trunk"]].to_dict(
        "records"
    )[0]
    step = int(snapshot["step"])
    recipe = Trunk.from_json(json.loads(trunk["recipe"]))
    telemetry = telemetry_of(data.trunk_steps(str(snapshot["trunk"])).iloc[:step])
    last = {name: float(getattr(telemetry[-1], name)) for name in ("lr_scale", "steps_since_reset")}
    validation = snapshot["validation"]
    return RunHistory(
        telemetry=telemetry,
        lrs_ahead=rates_ahead(scheduled(recipe), step, last, recipe.reset_warmup).tolist(),
        base_lr=float(trunk["lr"]),
        uniform_loss=float(trunk["uniform_loss"]),
        decision_steps=int(trunk["decision"]),
        validation=math.nan if validation is None else float(validation),
        flagged_ahead=int(snapshot["flagged_ahead"]),
    )


def telemetry_of(steps: pd.DataFrame) -> list[Telemetry]:
    """The telemetry that rows were made of, such as `Dataset.trunk_steps` has; the inverse of `trainenv.records.telemetry_log.row`."""
    return [
        Telemetry(
            **{name: row[name] for name in _PLAIN},
            stressors=tuple(row["stressors"]),
            reading=Reading(**{name: row[name] for name in _READING}),
        )
        for row in steps.to_dict("records")
    ]


def scheduled(trunk: Trunk) -> Floats:
    """The learning rate of each step of a trunk that nobody steers, [budget]: what was planned, planted spikes left out."""
    schedule = schedules.make(
        ScheduleConfig(
            kind=trunk.schedule,  # type: ignore[arg-type]
            warmup=trunk.warmup,
            final=trunk.final,
        )
    )
    horizon = schedules.Horizon(end=trunk.steps, since=min(trunk.warmup, trunk.steps))
    base = trunk.size.lr * trunk.lr_factor
    return np.array([base * schedule(step, horizon.progress(step)) for step in range(trunk.steps)])


def rates_ahead(planned: Floats, at: int, last: Mapping[str, float], reset_warmup: int) -> Floats:
    """The learning rates from step `at` on, as `Run.lrs_ahead` has them: with what was in force in the last step.

    Args:
        planned: as `scheduled` returns it; past its end the last one stands.
        at: steps completed.
        last: `lr_scale` and `steps_since_reset` of the last step.
        reset_warmup: steps over which the learning rate warms up after a momentum reset.
    """
    rates = (planned[at:] if at < len(planned) else planned[-1:]) * last["lr_scale"]
    since = int(last["steps_since_reset"])
    if since >= 0:
        warming = min(len(rates), max(0, reset_warmup - since))
        rates[:warming] *= [
            schedules.warmth(since + step, 0, reset_warmup) for step in range(warming)
        ]
    return rates
