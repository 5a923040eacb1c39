"""Forecasts of a loss curve from its history and the learning rates to come.

    history = History(steps=steps, losses=losses, lrs=lrs) fitted =
    make("anchored-multi-power").fit(history) forecast = fitted.predict(steps_ahead, lrs_ahead)
    # lrs_ahead [K, H]: K candidates; mean and std [K, H] in nats per token
    forecast.chance_below(best)[:, -1] < 0.05             # candidates to prune

One file a forecaster. Only the multi-power law knows of the learning rate. Where that changes, mean
absolute errors 2000 steps ahead on published curves were 69e-3 nats for the last value, 41e-3 for
the ensemble, 15e-3 for the anchored law fitted to that run alone, and 5e-3 with a law from other
schedules of the model (`MultiPower().pooled`): `benchmarks/curves.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from trainenv.tools.spelling import nearest
from trainenv.types import UserError
from trainenv.worldmodel.curves.contract import CurveForecast, CurveForecaster, FittedCurve
from trainenv.worldmodel.curves.ensemble import Ensemble
from trainenv.worldmodel.curves.history import History
from trainenv.worldmodel.curves.last_value import LastValue
from trainenv.worldmodel.curves.law import Law
from trainenv.worldmodel.curves.multi_power import MultiPower

FORECASTERS: Mapping[str, LastValue | Ensemble | MultiPower] = {
    "last-value": LastValue(),
    "pow3": Ensemble(families=("pow3",)),
    "exponential": Ensemble(
        families=("exponential",), recency=1e4
    ),  # no run is one exponential: the end of it may be
    "ensemble": Ensemble(),
    "multi-power": MultiPower(anchored=False),
    "anchored-multi-power": MultiPower(),
}
NAMES: tuple[str, ...] = tuple(FORECASTERS)

__all__ = [
    "FORECASTERS",
    "NAMES",
    "CurveForecast",
    "CurveForecaster",
    "Ensemble",
    "FittedCurve",
    "History",
    "LastValue",
    "Law",
    "MultiPower",
    "make",
]


def make(name: str, **hyperparameters: Any) -> LastValue | Ensemble | MultiPower:
    """The forecaster of that name; what is left out of its hyperparameters stays as it is there.

    Raises:
        UserError: no such forecaster or hyperparameter (the nearest valid one is named), or a value
            out of range.
    """
    if name not in FORECASTERS:
        raise UserError(
            f"curve forecaster must be one of {', '.join(NAMES)}, found {name!r}{nearest(name, NAMES)}"
        )
    forecaster = FORECASTERS[name]
    valid = [field.name for field in fields(forecaster)]
    for wrong in hyperparameters:
        if wrong not in valid:
            raise UserError(
                f"{name} has no hyperparameter {wrong!r}{nearest(wrong, valid)}; it has: {', '.join(valid) or 'none'}"
            )
    return replace(forecaster, **hyperparameters)
