"""How many branches to look at: more when risk is high, few when the run is calm.

    width = least · (most / least)^u,   u = clip((risk − calm) / (alarm − calm), 0, 1)

Widths are spaced evenly in ln, since what a wider search finds grows about with ln(width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainenv.planners.hyperparameters import number, whole
from trainenv.types import Forecast, Reading, UserError


@dataclass(frozen=True, kw_only=True)
class AdaptiveWidth:
    """The number of branches for a risk.

    Args:
        least: branches in a calm run, at least 1; doing nothing is one of them.
        most: branches at the alarm.
        calm: risk up to which it is `least`, a probability.
        alarm: risk from which on it is `most`, above `calm`.

    Raises:
        UserError: a hyperparameter is out of range.
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
        """How many branches at a risk, a probability from 0 to 1. Use it for `Budget(futures=…)`.

        Raises:
            UserError: the risk is no probability.
        """
        number("risk", risk, least=0, most=1)
        share = min(max((risk - self.calm) / (self.alarm - self.calm), 0.0), 1.0)
        return round(float(self.least * (self.most / self.least) ** share))


def risk_of(forecast: Forecast | None = None, reading: Reading | None = None) -> float:
    """The risk of going on as now: the greater of what the model and the uncertainty index say, from 0 to 1.

    Args:
        forecast: of doing nothing: its chance that the run diverges or the index fires. An
            abstaining model is a risk of 1.
        reading: of the last step: 1 where the index fired, else how far it is on the way to its
            threshold, half of it counting for nothing and the whole of it for one half.

    Raises:
        UserError: neither is given.
    """
    if forecast is None and reading is None:
        raise UserError(
            "risk is read from a forecast of doing nothing or a reading, found neither; give at least one"
        )
    found = [0.0]
    if forecast is not None:
        found.append(
            1.0 if forecast.abstain else 1 - (1 - forecast.divergence) * (1 - forecast.instability)
        )
    if reading is not None:
        near = reading.index / reading.threshold if 0 < reading.threshold < math.inf else 0.0
        found.append(1.0 if reading.fired else min(max(near - 0.5, 0.0), 0.5))
    return min(max(found), 1.0)
