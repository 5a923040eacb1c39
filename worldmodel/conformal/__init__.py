"""Calibration of the world model's forecasts: intervals, picks, risk, disagreement, and levels that adapt to late labels."""

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
