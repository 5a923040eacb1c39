"""Baselines that a world model must beat: simple forecasts of the effects of interventions.

    fitted = make("trees").fit(train)
    evaluate(test, fitted.predict(test))

There is one file per baseline, and all follow one contract (`Baseline`). A baseline without its own
quantiles takes them from its errors on held-out trunks (`points`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from trainenv.tools.spelling import nearest
from trainenv.types import UserError
from trainenv.worldmodel.baselines.ablations import ActionShuffled, Blind
from trainenv.worldmodel.baselines.contract import Baseline, Fitted
from trainenv.worldmodel.baselines.last_value import LastValue
from trainenv.worldmodel.baselines.learning_curve import Curve
from trainenv.worldmodel.baselines.mean_by_action import MeanByAction
from trainenv.worldmodel.baselines.multi_power_law import MultiPowerLaw
from trainenv.worldmodel.baselines.no_effect import DoNothing
from trainenv.worldmodel.baselines.ridge import Ridge
from trainenv.worldmodel.baselines.spikes import SpikeThreshold
from trainenv.worldmodel.baselines.trees import Trees

BASELINES: Mapping[str, Any] = {
    "nothing": DoNothing(),
    "last-value": LastValue(),
    "mean-by-action": MeanByAction(),
    "pow3": Curve(forecaster="pow3"),
    "exponential": Curve(forecaster="exponential"),
    "domhan": Curve(forecaster="ensemble"),
    "anchored-multi-power": MultiPowerLaw(),
    "pooled-multi-power": MultiPowerLaw(pooled=True),
    "law-and-spikes": SpikeThreshold(),
    "ridge": Ridge(),
    "trees": Trees(),
    "blind-ridge": Blind(of=Ridge()),
    "blind-trees": Blind(of=Trees()),
    "shuffled-ridge": ActionShuffled(of=Ridge()),
    "shuffled-trees": ActionShuffled(of=Trees()),
}
NAMES: tuple[str, ...] = tuple(BASELINES)

__all__ = [
    "BASELINES",
    "NAMES",
    "ActionShuffled",
    "Baseline",
    "Blind",
    "Curve",
    "DoNothing",
    "Fitted",
    "LastValue",
    "MeanByAction",
    "MultiPowerLaw",
    "Ridge",
    "SpikeThreshold",
    "Trees",
    "make",
]


def make(name: str, **hyperparameters: Any) -> Baseline:
    """Make the baseline with this name, with some of its hyperparameters changed.

    Raises:
        UserError: there is no such baseline or hyperparameter (the message names the nearest valid
            one), or a value is out of range.
    """
    if name not in BASELINES:
        raise UserError(
            f"baseline must be one of {', '.join(NAMES)}, found {name!r}{nearest(name, NAMES)}"
        )
    valid = [field.name for field in fields(BASELINES[name])]
    for wrong in hyperparameters:
        if wrong not in valid:
            raise UserError(
                f"{name} has no hyperparameter {wrong!r}{nearest(wrong, valid)}; "
                f"it has: {', '.join(valid) or 'none'}"
            )
    baseline: Baseline = replace(BASELINES[name], **hyperparameters)
    return baseline
