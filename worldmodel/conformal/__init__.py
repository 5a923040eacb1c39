"""Conformal calibration of the world model's forecasts.

    calibration = CQR(alpha=0.1).fit(lower, upper, outcome, trunks=trunks)
    low, high = calibration.interval(lower, upper)

`CQR` calibrates intervals for a candidate at random, `fit_selected` for the candidates that a
planner picks; `Platt` and `Isotonic` calibrate probabilities; `risk_limit` and `disagreement_limit`
bound what is let through; `AdaptiveLevel` follows labels that arrive late. All guarantees hold for
a new trunk.
"""

from trainenv.worldmodel.conformal.adaptive import AdaptiveLevel
from trainenv.worldmodel.conformal.intervals import CQR, Calibration, Correction
from trainenv.worldmodel.conformal.quantile import conformal_quantile
from trainenv.worldmodel.conformal.risk import Isotonic, Platt, disagreement_limit, risk_limit
from trainenv.worldmodel.conformal.selection import Decision, Lowest, fit_selected

__all__ = [
    "CQR",
    "AdaptiveLevel",
    "Calibration",
    "Correction",
    "Decision",
    "Isotonic",
    "Lowest",
    "Platt",
    "conformal_quantile",
    "disagreement_limit",
    "fit_selected",
    "risk_limit",
]
