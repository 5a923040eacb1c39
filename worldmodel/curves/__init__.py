"""Forecasts of a loss curve from its history and the learning rates to come.

    history = History(steps=steps, losses=losses, lrs=lrs)
    fitted = make("anchored-multi-power").fit(history)
    forecast = fitted.predict(steps_ahead, lrs_ahead)   # lrs_ahead [K, H]: K candidates
    forecast.mean                                       # [K, H] nats per token
    forecast.chance_below(best)[:, -1] < 0.05           # candidates to prune

There is one file per forecaster. Only the multi-power law depends on the learning rate. Measured by
`benchmarks/curves.py` on published curves with a changing learning rate, the mean absolute error
2000 steps ahead was

    last value                                             69e-3 nats
    ensemble                                               41e-3 nats
    anchored law, fitted to this run alone                 15e-3 nats
    law from other schedules of the model (`pooled`)        5e-3 nats
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
    # No whole run is exponential, but its end may be: late rows weigh more.
    "exponential": Ensemble(families=("exponential",), recency=1e4),
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
    """Make the forecaster with this name, with some of its hyperparameters changed.

    Raises:
        UserError: there is no such forecaster or hyperparameter (the message names the nearest
            valid one), or a value is out of range.
    """
    if name not in FORECASTERS:
        raise UserError(
            f"curve forecaster must be one of {', '.join(NAMES)}, "
            f"found {name!r}{nearest(name, NAMES)}"
        )
    forecaster = FORECASTERS[name]
    valid = [field.name for field in fields(forecaster)]
    for wrong in hyperparameters:
        if wrong not in valid:
            raise UserError(
                f"{name} has no hyperparameter {wrong!r}{nearest(wrong, valid)}; "
                f"it has: {', '.join(valid) or 'none'}"
            )
    return replace(forecaster, **hyperparameters)
