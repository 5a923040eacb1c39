"""Adaptive width: many branches when the risk is high, few when the run is calm.

    width = least · (most / least)^u,   u = clip((risk − calm) / (alarm − calm), 0, 1)

Widths are spaced evenly in ln, because the gain of a wider search grows about with ln(width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainenv.tools.checks import number, whole
from trainenv.types import Forecast, Reading, UserError


@dataclass(frozen=True, kw_only=True)
class AdaptiveWidth:
    """The number of branches as a function of the risk.

    Args:
        least: Branches in a calm run, at least 1; doing nothing is one of them.
        most: Branches at the alarm.
        calm: Highest risk with `least` branches, a probability.
        alarm: Lowest risk with `most` branches, a probability above `calm`.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    least: int = 8
    most: int = 128
    calm: float = 0.02
    alarm: float = 0.2

    def __post_init__(self) -> None:
        whole("least", self.least, least=1)
        whole("most", self.most, least=self.least)
        number("calm", self.calm, least=0, most=1)
        number("alarm", self.alarm, above=self.calm, most=1)

    def of(self, risk: float) -> int:
        """Return the number of branches for a risk, for `Budget(futures=…)`.

        Args:
            risk: Probability from 0 to 1.

        Raises:
            UserError: The risk is not a probability.
        """
        number("risk", risk, least=0, most=1)
        share = min(max((risk - self.calm) / (self.alarm - self.calm), 0.0), 1.0)
        return round(float(self.least * (self.most / self.least) ** share))


def risk_of(forecast: Forecast | None = None, reading: Reading | None = None) -> float:
    """Return the risk of changing nothing, from 0 to 1: the greater of two estimates.

    Args:
        forecast: Forecast of doing nothing. Its risk is the probability that the run diverges or
            the uncertainty index fires; it is 1 if the model abstains.
        reading: Reading of the last step. Its risk is 1 if the index fired. Otherwise it rises from
            0 at half the threshold to 0.5 at the threshold.

    Raises:
        UserError: Neither is given.
    """
    if forecast is None and reading is None:
        raise UserError(
            "risk needs a forecast of doing nothing or a reading, found neither; give at least one"
        )
    risks = [0.0]
    if forecast is not None:
        risks.append(_forecast_risk(forecast))
    if reading is not None:
        risks.append(_reading_risk(reading))
    return min(max(risks), 1.0)


def _forecast_risk(forecast: Forecast) -> float:
    if forecast.abstain:
        return 1.0
    return 1 - (1 - forecast.divergence) * (1 - forecast.instability)


def _reading_risk(reading: Reading) -> float:
    if reading.fired:
        return 1.0
    if not 0 < reading.threshold < math.inf:
        return 0.0
    return min(max(reading.index / reading.threshold - 0.5, 0.0), 0.5)
