"""Bandits over candidates: the model gives the prior, short real branches are the pulls.

An arm is a candidate. A pull runs it for real; its reward is the score that the branch measures.
Scores of pulls on different orders of the data scatter around an unknown mean θ with the standard
deviation `noise`:

    prior       θ ~ N(m₀, s₀²): the score that the model expects and its standard deviation,
                shrunk towards the mean of all candidates
    posterior   1/s² = 1/s₀² + n/noise²,  m = s²·(m₀/s₀² + Σ scores/noise²)

There are three methods:

- *Thompson sampling* (Thompson 1933; Russo et al. 2018, arXiv:1707.02038) pulls the arm that is
  best in one draw from the posterior.
- *UCB* is Bayes-UCB (Kaufmann et al. 2012): it pulls the arm with the best quantile 1 − 1/t of its
  posterior.
- *Halving* is successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) of real steps: all
  arms run for `steps`, the better half for twice as many, and so on until one is left.

Deviations:
- Only the best `arms` candidates by the prior are arms.
- The control is no arm. It is run with every draw, because scores are differences to it.
- Pull n of an arm uses draw n − 1, so the first is on the batches that the run itself would see.
- An arm that was given up, or a candidate that was no arm, never ranks before the survivors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.scoring import branch_steps
from trainenv.planners.support.sequences import Interventions, even, some
from trainenv.tools.checks import choice, number, whole
from trainenv.types import Cost, Plan, PlanningProblem

Floats = NDArray[np.float64]
Method = Literal["thompson", "ucb", "halving"]


@dataclass(frozen=True, kw_only=True)
class Bandit:
    """Find the best of the most promising candidates by real pulls.

    Args:
        method: Method: `thompson`, `ucb` or `halving`.
        candidates: Number of candidates that are forecast to find the arms. Without a model the
            arms are an even choice.
        arms: Number of arms.
        pulls: Number of pulls of all arms together, with `thompson` and `ucb`.
        batch: Number of arms that are pulled together.
        steps: Real steps of a pull, of the first round in `halving`; None for one decision.
        noise: Standard deviation of a measured score over orders of the data, nats.
        prior: Standard deviation of the prior if there is no model, nats; its mean then is 0.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    method: Method = "thompson"
    candidates: int = 128
    arms: int = 16
    pulls: int = 32
    batch: int = 4
    steps: int | None = None
    noise: float = 0.005
    prior: float = 0.03

    def __post_init__(self) -> None:
        choice("method", self.method, get_args(Method))
        for name in ("candidates", "arms", "pulls", "batch"):
            whole(name, getattr(self, name), least=1)
        if self.steps is not None:
            whole("steps", self.steps, least=1)
        number("noise", self.noise, above=0)
        number("prior", self.prior, above=0)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Pull the arms and rank them by their posterior means, or by the rounds they survived."""
        builder = PlanBuilder(problem, "bandit")
        _ = builder.executor  # an error here comes before anything is spent
        arms = self._arms(builder)
        steps = self.steps or branch_steps(builder, 1)
        if self.method == "halving":
            builder.rank(_halved(builder, [arm.sequence for arm in arms], steps))
        else:
            self._pull(builder, arms, steps)
            known = [
                (arm.mean, place) for place, arm in enumerate(arms) if arm.pulls or arm.forecast
            ]
            builder.rank([(arms[place].sequence, mean) for mean, place in sorted(known)])
        return builder.plan()

    def _arms(self, builder: PlanBuilder) -> list[_Arm]:
        """Return the arms, the most promising first."""
        problem = builder.problem
        limit = self.candidates
        if problem.model is None:
            limit = self.arms
        pool = list(dict.fromkeys([*builder.proposals, *some(problem, limit, 1, even)]))[:limit]
        if problem.model is None or builder.futures_left == 0:
            return [_Arm(one, 0.0, self.prior**2) for one in pool[: self.arms]]
        builder.forecast(pool)
        known = [(one, forecast) for one in pool if (forecast := builder.forecast_of(one))]
        expected = np.array([builder.criterion.expected(forecast) for _, forecast in known])
        spreads = np.array([builder.criterion.spread(forecast) for _, forecast in known])
        means, variances = shrunk(
            expected, np.where(np.isfinite(spreads), spreads, self.prior), least=self.noise
        )
        best = np.argsort(means, kind="stable")[: self.arms]
        return [
            _Arm(known[place][0], float(means[place]), float(variances[place]), forecast=True)
            for place in best
        ]

    def _pull(self, builder: PlanBuilder, arms: list[_Arm], steps: int) -> None:
        """Pull arms and update their posteriors; an arm whose branch fails is removed."""
        generator = builder.problem.generator
        pulls = 0
        # Pulling goes on if the budget did not cover all forecasts.
        exhausted = builder.exhausted
        builder.exhausted = False
        while arms and pulls < self.pulls and not builder.over and not builder.exhausted:
            size = min(self.batch, self.pulls - pulls, len(arms))
            if self.method == "thompson":
                chosen = _thompson(arms, size, generator)
            else:
                chosen = _bayes_ucb(arms, size, 1 + pulls // self.batch)
            pulls += size
            groups = {
                draw: [arm for arm in chosen if arm.pulls == draw]
                for draw in sorted({arm.pulls for arm in chosen})
            }
            for draw, group in groups.items():  # one call for all arms with the same next draw
                scores = builder.run([arm.sequence for arm in group], steps, draw=draw)
                for arm, score in zip(group, scores, strict=True):
                    if math.isfinite(score):
                        arm.update(score, self.noise)
                    elif not (builder.over or builder.exhausted):  # else it may not have been run
                        arms.remove(arm)
        builder.exhausted = builder.exhausted or exhausted


@dataclass
class _Arm:
    """A candidate and its posterior.

    Attributes:
        sequence: Interventions of the candidate.
        mean: Mean of the score, nats.
        variance: Variance of the mean, nats².
        pulls: Number of pulls so far.
        forecast: True if the prior is a forecast.
    """

    sequence: Interventions
    mean: float
    variance: float
    pulls: int = 0
    forecast: bool = False

    def update(self, score: float, noise: float) -> None:
        """Update the posterior with the score of one more pull."""
        precision = 1 / self.variance + 1 / noise**2
        self.mean = (self.mean / self.variance + score / noise**2) / precision
        self.variance = 1 / precision
        self.pulls += 1


def shrunk(expected: Floats, spreads: Floats, *, least: float) -> tuple[Floats, Floats]:
    """Shrink forecasts towards their mean (empirical Bayes; Efron and Morris 1973).

    The best of many forecasts is the one with the luckiest error. So candidates are assumed to
    differ as N(μ, τ²), with μ the mean of the expected scores and τ² their variance less that of
    the errors.

    Args:
        expected: Expected scores, nats, [n].
        spreads: Standard deviations of their errors, nats, [n].
        least: Least τ, nats: the noise of a real pull. If forecasts differ by less than their
            errors, the model does not know how candidates differ, and must not outweigh pulls.

    Returns:
        Means and variances of the scores, [n] each.
    """
    if len(expected) < 3:
        return expected, spreads**2
    between = max(float(expected.var() - (spreads**2).mean()), least**2)
    precision = 1 / spreads**2 + 1 / between
    return (expected / spreads**2 + expected.mean() / between) / precision, 1 / precision


def _thompson(arms: list[_Arm], size: int, generator: np.random.Generator) -> list[_Arm]:
    """Return the `size` arms that are best in one draw from all posteriors."""
    drawn = [
        arm.mean + math.sqrt(arm.variance) * z
        for arm, z in zip(arms, generator.standard_normal(len(arms)))
    ]
    return [arms[place] for place in np.argsort(drawn, kind="stable")[:size]]


def _bayes_ucb(arms: list[_Arm], size: int, time: int) -> list[_Arm]:
    """Return the `size` arms with the best quantile 1 − 1/(t + 1).

    Low scores are good, so the quantile lies below the mean.
    """
    z = NormalDist().inv_cdf(1 - 1 / (time + 1))
    return sorted(arms, key=lambda arm: arm.mean - z * math.sqrt(arm.variance))[:size]


def _halved(
    builder: PlanBuilder, arms: list[Interventions], steps: int
) -> list[tuple[Interventions, float]]:
    """Run successive halving; return each sequence with its last score, the survivors first."""
    ahead = len(builder.problem.history.lrs_ahead)
    alive = _payable(builder, arms, steps)
    last = dict[Interventions, float]()
    out: list[Interventions] = []  # in the order in which they dropped out
    while alive and not builder.over:
        scores = dict(zip(alive, builder.run(alive, steps), strict=True))
        last |= {one: score for one, score in scores.items() if math.isfinite(score)}
        ranked = sorted(
            (one for one in alive if math.isfinite(scores[one])), key=scores.__getitem__
        )
        if not ranked:
            break
        kept = ranked[: -(-len(ranked) // 2)]
        out += [one for one in alive if one not in ranked] + ranked[len(kept) :][::-1]
        finished = len(ranked) == 1 or steps >= ahead
        alive = kept
        steps = min(2 * steps, ahead)
        if finished:
            break
    return [(one, last[one]) for one in [*alive, *reversed(out)] if one in last]


def _payable(builder: PlanBuilder, arms: list[Interventions], steps: int) -> list[Interventions]:
    """Return the longest prefix of arms whose rounds the budget covers, but at least two arms."""
    size = len(arms)
    while size > 2:
        price = _halving_price(builder, arms[:size], steps)
        if price is None:
            return arms
        if builder.covers(price):
            break
        size -= 1
    return arms[:size]


def _halving_price(builder: PlanBuilder, arms: list[Interventions], steps: int) -> Cost | None:
    """Return the most that all rounds of some arms cost; None if the executor fails to say."""
    total = Cost()
    alive = len(arms)
    while alive:
        price = builder.price(arms[:alive], steps)
        if price is None:
            return None
        total = total + price
        if alive == 1:
            break
        alive = -(-alive // 2)
        steps = 2 * steps
    return total
