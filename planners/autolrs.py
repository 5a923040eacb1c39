"""AutoLRS (Jin et al. 2021, arXiv:2105.10762): the learning rate of the next stage.

Bayesian optimisation of short real runs. With τ the length of a stage, learning rates are tried one
after the other from the run as it is, each for τ/10 steps:

    1.  an exponential a·e^{bt} + c with b < 0 < a is fitted to the loss of the short run;
        its value at t = τ is the forecast loss of that learning rate
    2.  a Gaussian process over ln(learning rate) is fitted to the forecast losses so far;
        the rate with the least mean − κ·std is tried next
    3.  after `tries` rates, the rate with the least forecast loss is the plan for τ steps

It is the published controller to beat. It scores by the raw loss at τ, whatever the criterion of
the problem, so it shares the short-horizon bias: lower learning rates look better than they are.

Deviations:
- The rates are those that the action space reaches now (× 0.8 to × 1.1 by default). They are few
  and all are tried; the paper searches an interval.
- The fit is to clean validation losses, so there are no outliers to remove first.
- The present rate, the lowest and the highest are tried first.
- With fewer than four evaluation points the last loss is the forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.score import Score
from trainenv.planners.support.sequences import NOTHING, Interventions, canonical, values
from trainenv.tools.checks import number, whole
from trainenv.tools.gaussian_process import fit
from trainenv.types import Intervention, Plan, PlanningProblem

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AutoLRS:
    """Find the learning rate of the next stage by short real runs.

    Args:
        stage: Length of a stage, τ, in decisions; shorter at the end of the run.
        tries: Learning rates that are tried, the present one included.
        share: Length of a short run, as a share of τ.
        kappa: Standard deviations below the mean in the choice of the next rate, κ.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    stage: int = 10
    tries: int = 10
    share: float = 0.1
    kappa: float = 1.0

    def __post_init__(self) -> None:
        whole("stage", self.stage, least=1)
        whole("tries", self.tries, least=1)
        number("share", self.share, above=0, most=1)
        number("kappa", self.kappa, least=0)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank learning rates by their forecast loss after the stage."""
        builder = PlanBuilder(problem, "autolrs", criterion=Score(measure="horizon"))
        _ = builder.executor  # an error here comes before anything is spent
        history = problem.history
        tau = max(1, min(self.stage * history.decision_steps, len(history.lrs_ahead)))
        steps = max(1, round(self.share * tau))
        rates = _rates(problem)
        tried: dict[Interventions, float] = {}  # Δ ln of the forecast loss
        failed: set[Interventions] = set()
        while len(tried) + len(failed) < self.tries and not builder.over and not builder.exhausted:
            left = [one for one in rates if one not in tried and one not in failed]
            if not left:
                break
            one = self._choose(rates, tried, left)
            if math.isfinite(builder.run([one], steps)[0]):
                tried[one] = _forecast(builder, one, steps, tau)
                builder.score(one, tried[one])
            else:
                failed.add(one)
        return builder.plan()

    def _choose(
        self,
        rates: dict[Interventions, float],
        tried: dict[Interventions, float],
        left: list[Interventions],
    ) -> Interventions:
        """Choose the next rate: the present, the lowest, the highest, then by the process."""
        first = [NOTHING, min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)]
        for one in first:
            if one in left:
                return one
        width = max(rates.values()) - min(rates.values())
        points = np.array([[rates[one] / width] for one in tried])  # [n, 1]
        process = fit(points, np.array(list(tried.values())))
        mean, std = process.at(np.array([[rates[one] / width] for one in left]))
        return left[int(np.argmin(mean - self.kappa * std))]


def _rates(problem: PlanningProblem) -> dict[Interventions, float]:
    """Return ln of the factor of each legal change of the learning rate alone; 0 comes first."""
    rates: dict[Interventions, float] = {}
    vector = [0] * len(problem.masks)
    for value in values(problem.masks)[0]:
        change: Intervention = problem.codec.decode([int(value), *vector[1:]])
        rates[canonical([change])] = math.log(change.lr_scale)
    return rates


def _forecast(builder: PlanBuilder, one: Interventions, steps: int, tau: int) -> float:
    """Return Δ ln of the forecast loss at τ against doing nothing.

    If a branch diverged, return the measured score, which has the cost of the divergence.
    """
    outcome = builder.outcome(one, steps)
    control = builder.outcome(NOTHING, steps)
    if outcome is None or control is None or outcome.diverged or control.diverged:
        return builder.measured(one, steps)
    return math.log(
        extrapolated(outcome.looks, outcome.validation, tau)
        / extrapolated(control.looks, control.validation, tau)
    )


def extrapolated(steps: ArrayLike, losses: ArrayLike, at: float) -> float:
    """Return the loss at a later step by a·e^{bt} + c with b < 0 ≤ a, fitted by least squares.

    For each b of a grid, the best a and c follow from linear regression. The result is between the
    last loss and half of it; it is the last loss if there are too few losses for a fit.

    Args:
        steps: Steps in rising order, [n].
        losses: Losses at these steps, nats per token, [n].
        at: Step of the forecast, at or after the last.
    """
    t = np.asarray(steps, dtype=np.float64)
    y = np.asarray(losses, dtype=np.float64)
    known = np.isfinite(y)
    t = t[known]
    y = y[known]
    if len(t) < 4 or at <= t[-1]:
        return float(y[-1])
    rates = np.geomspace(0.05, 20.0, 40)
    for _ in range(2):  # a coarse grid, then a fine one around its best rate
        forecast, rate = _fit_exponential(t, y, rates / (t[-1] - t[0]), at)
        rates = np.geomspace(rate / 1.17, rate * 1.17, 41) * (t[-1] - t[0])
    return min(max(forecast, 0.5 * float(y[-1])), float(y[-1]))


def _fit_exponential(t: Floats, y: Floats, rates: Floats, at: float) -> tuple[float, float]:
    """Fit the exponential with the best of some rates −b, [R].

    Returns:
        Value at `at`, or the last of y if no exponential falls, and the best rate.
    """
    shapes = np.exp(-np.multiply.outer(rates, t - t[0]))  # [R, n]
    centred = shapes - shapes.mean(axis=1, keepdims=True)
    rest = y - y.mean()  # [n]
    a = centred @ rest / (centred**2).sum(axis=1)  # [R]
    errors = np.where(a > 0, ((rest - a[:, None] * centred) ** 2).sum(axis=1), np.inf)
    best = int(np.argmin(errors))
    if errors[best] == np.inf:
        return float(y[-1]), float(rates[best])
    later = math.exp(-rates[best] * (at - t[0])) - float(shapes[best].mean())
    return float(y.mean() + a[best] * later), float(rates[best])
