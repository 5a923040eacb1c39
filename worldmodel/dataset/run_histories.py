"""History of a run at a snapshot of a data set: what a planner would have known there.

history = recorded_history(data, row)      # of the snapshot in that row of `data.snapshots`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import ScheduleConfig
from trainenv.records.telemetry_log import telemetry_of
from trainenv.tools.json_lines import number_or_nan
from trainenv.training import schedules
from trainenv.types import RunHistory
from trainenv.worldmodel.dataset.dataset import Dataset
from trainenv.worldmodel.dataset.trunks import Trunk

Floats = NDArray[np.float64]


def recorded_history(data: Dataset, row: int) -> RunHistory:
    """Return the history of a run up to a snapshot, as `training.history.history_of` makes it.

    Args:
        data: Data set.
        row: Row of the snapshot in `data.snapshots`.
    """
    snapshot: dict[Any, Any] = data.snapshots.iloc[row].to_dict()
    trunk: dict[Any, Any] = data.trunks[data.trunks["trunk"] == snapshot["trunk"]].to_dict(
        "records"
    )[0]
    step = int(snapshot["step"])
    recipe = Trunk.from_json(json.loads(trunk["recipe"]))
    telemetry = telemetry_of(data.trunk_steps(str(snapshot["trunk"])).iloc[:step])
    last = {name: float(getattr(telemetry[-1], name)) for name in ("lr_scale", "steps_since_reset")}
    return RunHistory(
        telemetry=telemetry,
        lrs_ahead=rates_ahead(scheduled(recipe), step, last, recipe.reset_warmup).tolist(),
        base_lr=float(trunk["lr"]),
        uniform_loss=float(trunk["uniform_loss"]),
        decision_steps=int(trunk["decision"]),
        validation=number_or_nan(snapshot["validation"]),
        flagged_ahead=int(snapshot["flagged_ahead"]),
    )


def scheduled(trunk: Trunk) -> Floats:
    """Return the scheduled learning rate of each step of a trunk, [budget], without faults."""
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
    """Return the learning rates from step `at` on, as `TrainingRun.lrs_ahead` does.

    The interventions in force at the last step stay in force.

    Args:
        planned: [budget] learning rates, as `scheduled` returns them; after the end the last one
            holds.
        at: Number of steps completed.
        last: Values of `lr_scale` and `steps_since_reset` at the last step.
        reset_warmup: Steps over which the learning rate warms up after a momentum reset.
    """
    rates = planned[min(at, len(planned) - 1) :] * last["lr_scale"]
    since = int(last["steps_since_reset"])
    if since >= 0:
        warming = min(len(rates), max(0, reset_warmup - since))
        rates[:warming] *= [
            schedules.warmth(since + step, 0, reset_warmup) for step in range(warming)
        ]
    return rates
