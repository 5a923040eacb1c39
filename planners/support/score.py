"""The default criterion: Δ ln loss against doing nothing, in nats, with divergence priced in.

    score = (1 − p)·E[Δ ln loss | no divergence] + p·divergence_cost

with p = P(the run diverges within N steps). Lower is better. The measure says which loss:

- `annealed`, the default: the loss after a reference cool-down.
- `final`: the loss at the end of the run.
- `horizon`: the loss N steps ahead. It rewards cutting the learning rate for its own sake, since a
  cut brings forward the fall of the loss that every run gets at its end: choosing by the exact loss
  at +50 steps was worse than doing nothing.

A diverged branch scores `divergence_cost`, even if it does nothing, so that escaping from a
divergence counts as much as causing one costs. If the control has diverged, the other branches are
compared with the loss of now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from trainenv.tools.checks import choice, number
from trainenv.types import Estimate, Forecast, Measure, Outcome

_Z90 = 1.6448536269514722  # standard deviations on each side of a 90 % interval
_LEAST_SPREAD = 1e-6  # nats


@dataclass(frozen=True, kw_only=True)
class Score:
    """The default criterion; the module has the formula.

    Args:
        measure: Loss that counts: `horizon`, `annealed` or `final`.
        divergence_cost: Cost of a divergence, nats, above 0: the ln loss and compute that a rewind
            loses.

    Raises:
        UserError: There is no such measure, or the cost is not a finite number above 0.
    """

    measure: Measure = "annealed"
    divergence_cost: float = 0.5

    def __post_init__(self) -> None:
        choice("measure", self.measure, get_args(Measure))
        number("divergence_cost", self.divergence_cost, above=0)

    def expected(self, forecast: Forecast, /) -> float:
        """Return the expected score of a forecast, nats; NaN if a number of it is NaN."""
        p = forecast.divergence
        return (1 - p) * self._estimate(forecast).mean + p * self.divergence_cost

    def spread(self, forecast: Forecast, /) -> float:
        """Return the standard deviation of the score, nats.

        It combines the forecast's interval, the disagreement of the ensemble and the chance of
        diverging.
        """
        p = forecast.divergence
        estimate = self._estimate(forecast)
        inside = ((estimate.high - estimate.low) / (2 * _Z90)) ** 2 + forecast.disagreement**2
        variance = (1 - p) * inside + p * (1 - p) * (self.divergence_cost - estimate.mean) ** 2
        if not math.isfinite(variance):
            return math.nan
        return max(math.sqrt(max(variance, 0.0)), _LEAST_SPREAD)

    def measured(self, outcome: Outcome, control: Outcome, /) -> float:
        """Return the score of an outcome against its control, nats; NaN if it was not measured."""
        if outcome.error or control.error:
            return math.nan
        if outcome.diverged:
            return self.divergence_cost
        loss = self._loss(outcome)
        base = self._loss(control)
        if control.diverged and outcome.validation:
            base = outcome.validation[0]
        if 0 < loss < math.inf and 0 < base < math.inf:
            return math.log(loss / base)
        return math.nan

    def _estimate(self, forecast: Forecast) -> Estimate:
        estimate: Estimate = getattr(forecast, self.measure)
        return estimate

    def _loss(self, outcome: Outcome) -> float:
        if self.measure == "annealed":
            return outcome.annealed
        if self.measure == "final":
            return outcome.final
        if outcome.validation:
            return outcome.validation[-1]
        return math.nan
