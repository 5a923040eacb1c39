"""What is to be small: Δ ln loss against doing nothing, in nats, with divergence priced in.

Lower is better.

    score = (1 − p)·E[Δ ln loss | it does not diverge] + p·divergence_cost          p = P(it diverges within N steps)

Of which loss, the measure says. `horizon` makes it the score of the specification: the loss N steps
ahead, and risk. It rewards cutting the learning rate for its own sake, since that gives at once
what every run gets at its end; a perfect look at +50 steps chose worse than doing nothing. So the
default is `annealed`, the loss after a reference cool-down; `final` is that at the end of the run.

A diverged branch scores `divergence_cost`, doing nothing included, so that getting away from a
divergence counts for as much as running into one costs. Beside a control that has diverged, the
others are compared with the loss of now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from trainenv.planners.hyperparameters import choice, number
from trainenv.types import Estimate, Forecast, Measure, Outcome

# an interval that holds 90 of 100 reaches so many standard deviations to each side
_Z90 = 1.6448536269514722
_LEAST_SPREAD = 1e-6  # nats


@dataclass(frozen=True, kw_only=True)
class Score:
    """A criterion.

    Args:
        measure: `horizon`, `annealed` or `final`; see the module.
        divergence_cost: nats that a divergence costs, above 0: what going back loses in ln loss and
            compute.

    Raises:
        UserError: there is no such measure, or the cost is not a finite number above 0.
    """

    measure: Measure = "annealed"
    divergence_cost: float = 0.5

    def __post_init__(self) -> None:
        choice("measure", self.measure, get_args(Measure))
        number("divergence_cost", self.divergence_cost, above=0)

    def expected(self, forecast: Forecast, /) -> float:
        """The score that a forecast gives reason to expect, nats; NaN where a number of it is none."""
        p = forecast.divergence
        return (1 - p) * self._estimate(forecast).mean + p * self.divergence_cost

    def spread(self, forecast: Forecast, /) -> float:
        """Standard deviation of the score, nats: from the interval, the ensemble's disagreement and the chance of diverging."""
        p = forecast.divergence
        estimate = self._estimate(forecast)
        inside = ((estimate.high - estimate.low) / (2 * _Z90)) ** 2 + forecast.disagreement**2
        variance = (1 - p) * inside + p * (1 - p) * (self.divergence_cost - estimate.mean) ** 2
        return (
            max(math.sqrt(max(variance, 0.0)), _LEAST_SPREAD)
            if math.isfinite(variance)
            else math.nan
        )

    def measured(self, outcome: Outcome, control: Outcome, /) -> float:
        """The score of an outcome beside its control, nats; NaN where the loss in question was not measured."""
        if outcome.error or control.error:
            return math.nan
        if outcome.diverged:
            return self.divergence_cost
        loss = self._loss(outcome)
        base = (
            outcome.validation[0]
            if control.diverged and outcome.validation
            else self._loss(control)
        )
        return math.log(loss / base) if 0 < loss < math.inf and 0 < base < math.inf else math.nan

    def _estimate(self, forecast: Forecast) -> Estimate:
        estimate: Estimate = getattr(forecast, self.measure)
        return estimate

    def _loss(self, outcome: Outcome) -> float:
        if self.measure == "horizon":
            return outcome.validation[-1] if outcome.validation else math.nan
        return outcome.annealed if self.measure == "annealed" else outcome.final
