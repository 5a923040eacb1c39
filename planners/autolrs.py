"""AutoLRS (Jin et al.

2021, arXiv:2105.10762): the learning rate of the next stage by Bayesian optimisation of short real
runs.

From the run as it is, learning rates are tried one after the other, each for τ/10 steps, where τ is
the length of a stage:

    an exponential a·e^{bt} + c, b < 0 < a, is fitted to the loss of the short run, and its value at
    t = τ is the forecast loss a Gaussian process over ln(learning rate) has seen these; the next
    rate tried is the one with the least mean − κ·std after `tries` of them, the rate with the least
    forecast loss is the plan, to be run for τ

It is the published controller to beat. It judges by the raw loss at τ, whatever the criterion, and
so shares the short-horizon
bias: lower learning rates look better than they are.

Deviations: rates are those that the action space reaches now (× 0.8 to × 1.1 by default: few, so
that all are tried, where the paper searches an interval); the fit is to clean validation losses, so
there are no outliers to remove before it; the first rates tried are the present one, the lowest and
the highest; with fewer than four looks, the last loss stands for the forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.planners.hyperparameters import number, whole
from trainenv.planners.support.gaussian_process import fit
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.score import Score
from trainenv.planners.support.sequences import NOTHING, Sequenced, canonical, values
from trainenv.types import Intervention, Plan, PlanningProblem

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AutoLRS:
    """Find the learning rate for the next stage by short real runs.

    Args:
        stage: τ in decisions; less where the run ends before.
        tries: learning rates tried, the present one among them.
        share: of τ that each is run.
        kappa: standard deviations below the mean at which the next rate is chosen.

    Raises:
        UserError: a hyperparameter is out of range.
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
        """Rank learning rates by the loss that they are forecast to have after the stage."""
        draft = PlanBuilder(problem, "autolrs", criterion=Score(measure="horizon"))
        _ = draft.executor  # its absence is told before anything is spent
        tau = max(
            1, min(self.stage * problem.history.decision_steps, len(problem.history.lrs_ahead))
        )
        steps = max(1, round(self.share * tau))
        rates = _rates(problem)  # sequence → ln of its factor
        tried: dict[Sequenced, float] = {}
        failed: set[Sequenced] = set()
        while len(tried) + len(failed) < self.tries and not draft.over and not draft.exhausted:
            left = [one for one in rates if one not in tried and one not in failed]
            if not left:
                break
            one = self._next(rates, tried, left)
            if math.isfinite(draft.run([one], steps)[0]):
                tried[one] = _forecast(draft, one, steps, tau)
                draft.score(one, tried[one])
            else:
                failed.add(one)
        return draft.plan()

    def _next(
        self, rates: dict[Sequenced, float], tried: dict[Sequenced, float], left: list[Sequenced]
    ) -> Sequenced:
        """The present rate, the lowest, the highest, then by the process."""
        first = [NOTHING, min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)]
        for one in first:
            if one in left:
                return one
        width = max(rates.values()) - min(rates.values())
        points = np.array([[rates[one] / width] for one in tried])
        process = fit(points, np.array(list(tried.values())))
        mean, std = process.at(np.array([[rates[one] / width] for one in left]))
        return left[int(np.argmin(mean - self.kappa * std))]


def _rates(problem: PlanningProblem) -> dict[Sequenced, float]:
    """What changes the learning rate alone and is legal now, with ln of the factor; doing nothing first."""
    rates: dict[Sequenced, float] = {}
    vector = [0] * len(problem.masks)
    for value in values(problem.masks)[0]:
        change: Intervention = problem.codec.decode([int(value), *vector[1:]])
        rates[canonical([change])] = math.log(change.lr_scale)
    return rates


def _forecast(draft: PlanBuilder, one: Sequenced, steps: int, tau: int) -> float:
    """Δ ln of the loss forecast at τ, against doing nothing; the price of a divergence where one of them diverged."""
    outcome = draft.outcome(one, steps)
    control = draft.outcome(NOTHING, steps)
    if outcome is None or control is None or outcome.diverged or control.diverged:
        return draft.measured(one, steps)
    return math.log(
        extrapolated(outcome.looks, outcome.validation, tau)
        / extrapolated(control.looks, control.validation, tau)
    )


def extrapolated(steps: ArrayLike, losses: ArrayLike, at: float) -> float:
    """The loss at step `at` by a·e^{bt} + c with b < 0 ≤ a, fitted by least squares; the last loss where it cannot be fitted.

    For each of some b the best a and c follow by linear regression. The result is between the last
    loss and half of it.

    Args:
        steps: [n] rising.
        losses: [n] nats per token.
        at: step, at or after the last.
    """
    t = np.asarray(steps, dtype=np.float64)
    y = np.asarray(losses, dtype=np.float64)
    known = np.isfinite(y)
    t = t[known]
    y = y[known]
    if len(t) < 4 or at <= t[-1]:
        return float(y[-1])
    rates = np.geomspace(0.05, 20.0, 40)
    for _ in range(2):  # a coarse grid, then a fine one around the best of it
        forecast, rate = _fitted(t, y, rates / (t[-1] - t[0]), at)
        rates = np.geomspace(rate / 1.17, rate * 1.17, 41) * (t[-1] - t[0])
    return min(max(forecast, 0.5 * float(y[-1])), float(y[-1]))


def _fitted(t: Floats, y: Floats, rates: Floats, at: float) -> tuple[float, float]:
    """The value at `at` of the exponential with the best of some rates −b [R], and that rate; the last of y if none falls."""
    shapes = np.exp(-np.multiply.outer(rates, t - t[0]))  # [R, n]
    centred = shapes - shapes.mean(axis=1, keepdims=True)
    rest = y - y.mean()
    a = centred @ rest / (centred**2).sum(axis=1)  # [R]
    errors = np.where(a > 0, ((rest - a[:, None] * centred) ** 2).sum(axis=1), np.inf)
    best = int(np.argmin(errors))
    if errors[best] == np.inf:
        return float(y[-1]), float(rates[best])
    later = math.exp(-rates[best] * (at - t[0])) - float(shapes[best].mean())
    return float(y.mean() + a[best] * later), float(rates[best])
