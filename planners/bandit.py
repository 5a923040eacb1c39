"""Bandits over candidates: the model gives the prior, real probes are the pulls.

An arm is a candidate, its reward the score that a short real branch measures, a normal number of
unknown mean θ around which pulls on different orders of the data to come scatter with standard
deviation `noise`:

    prior      θ ~ N(score that the model expects, its standard deviation²), shrunk towards the mean
    of all candidates posterior  1/s² = 1/s₀² + n/noise²,  m = s²·(m₀/s₀² + Σ scores/noise²)

*Thompson sampling* (Thompson 1933; Russo et al. 2018, arXiv:1707.02038) pulls the arm that is best in a draw from the posterior.
*UCB* is Bayes-UCB (Kaufmann et al. 2012): it pulls the arm with the best quantile 1 − 1/t of its posterior.
*Halving* is successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) of real steps: all arms are run for `steps`, the
better half goes on to twice as many, and so on to the last one.

Deviations: the best `arms` candidates by the prior are the arms, not all candidates. The control is
no arm: it is run beside every draw, since scores are differences to it. Pull n of an arm takes draw
n − 1, so that the first is on the batches that the run itself would see. An arm that was given up
on, and what was no arm, never ranks before those that outlived it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.hyperparameters import choice, number, whole
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.scoring import branch_steps
from trainenv.planners.support.sequences import Sequenced, even, some
from trainenv.types import Cost, Plan, PlanningProblem

Floats = NDArray[np.float64]
Method = Literal["thompson", "ucb", "halving"]


@dataclass(frozen=True, kw_only=True)
class Bandit:
    """Choose by real probes which of the most promising candidates is best.

    Args:
        method: `thompson`, `ucb` or `halving`.
        candidates: so many are forecast to find the arms; without a model the arms are an even
            choice.
        arms: so many are pulled.
        pulls: probes altogether, with `thompson` and `ucb`.
        batch: arms that are probed at once.
        steps: real steps of a probe, of the first round in `halving`; None for one decision.
        noise: standard deviation of a measured score over orders of the data, nats.
        prior: standard deviation of scores where there is no model, nats; their mean then is 0.

    Raises:
        UserError: a hyperparameter is out of range.
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
        """Rank candidates by what is believed of them in the end."""
        draft = PlanBuilder(problem, "bandit")
        _ = draft.executor  # its absence is told before anything is spent
        arms = self._arms(draft)
        steps = self.steps or branch_steps(draft, 1)
        if self.method == "halving":
            draft.rank(_halved(draft, [arm.sequence for arm in arms], steps))
        else:
            self._pull(draft, arms, steps)
            believed = [
                (arm.mean, place) for place, arm in enumerate(arms) if arm.pulls or arm.forecast
            ]
            draft.rank([(arms[place].sequence, mean) for mean, place in sorted(believed)])
        return draft.plan()

    def _arms(self, draft: PlanBuilder) -> list[_Arm]:
        """The arms, the most promising first."""
        problem = draft.problem
        limit = self.arms if problem.model is None else self.candidates
        pool = list(dict.fromkeys([*draft.proposals, *some(problem, limit, 1, even)]))[:limit]
        if problem.model is None or draft.futures_left == 0:
            return [_Arm(one, 0.0, self.prior**2) for one in pool[: self.arms]]
        draft.forecast(pool)
        known = [(one, forecast) for one in pool if (forecast := draft.forecast_of(one))]
        expected = np.array([draft.criterion.expected(forecast) for _, forecast in known])
        spreads = np.array([draft.criterion.spread(forecast) for _, forecast in known])
        means, variances = shrunk(
            expected, np.where(np.isfinite(spreads), spreads, self.prior), least=self.noise
        )
        best = np.argsort(means, kind="stable")[: self.arms]
        return [
            _Arm(known[place][0], float(means[place]), float(variances[place]), forecast=True)
            for place in best
        ]

    def _pull(self, draft: PlanBuilder, arms: list[_Arm], steps: int) -> None:
        generator = draft.problem.generator
        pulls = 0
        # fewer forecasts than wanted are no reason not to pull
        cut = draft.exhausted
        draft.exhausted = False
        while arms and pulls < self.pulls and not draft.over and not draft.exhausted:
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
            for draw, group in groups.items():  # one call for those whose next draw is the same
                for arm, score in zip(
                    group, draft.run([arm.sequence for arm in group], steps, draw=draw), strict=True
                ):
                    if math.isfinite(score):
                        arm.see(score, self.noise)
                    elif not (
                        draft.over or draft.exhausted
                    ):  # it failed; otherwise it was not run at all
                        arms.remove(arm)
        draft.exhausted = draft.exhausted or cut


@dataclass
class _Arm:
    """What is believed of a candidate: its score is normal with this mean and variance."""

    sequence: Sequenced
    mean: float
    variance: float
    pulls: int = 0
    forecast: bool = False

    def see(self, score: float, noise: float) -> None:
        """The posterior after one more pull."""
        precision = 1 / self.variance + 1 / noise**2
        self.mean = (self.mean / self.variance + score / noise**2) / precision
        self.variance = 1 / precision
        self.pulls += 1


def shrunk(expected: Floats, spreads: Floats, *, least: float) -> tuple[Floats, Floats]:
    """Means and variances of what candidates are worth, given what a model expects of each: [n] each.

    The best of many forecasts is the one with the luckiest error. So candidates are taken to differ
    as N(μ, τ²), with μ the mean of what is expected and τ² its variance less that of the errors
    (empirical Bayes; Efron and Morris 1973). τ is at least `least`, the noise of a real run: a
    model so vague that its forecasts differ by less than their errors knows nothing of how
    candidates differ, and is not to outweigh what is measured.
    """
    if len(expected) < 3:
        return expected, spreads**2
    between = max(float(expected.var() - (spreads**2).mean()), least**2)
    precision = 1 / spreads**2 + 1 / between
    return (expected / spreads**2 + expected.mean() / between) / precision, 1 / precision


def _thompson(arms: list[_Arm], size: int, generator: np.random.Generator) -> list[_Arm]:
    """The `size` arms that are best in one draw from all posteriors."""
    drawn = [
        arm.mean + math.sqrt(arm.variance) * z
        for arm, z in zip(arms, generator.standard_normal(len(arms)))
    ]
    return [arms[place] for place in np.argsort(drawn, kind="stable")[:size]]


def _bayes_ucb(arms: list[_Arm], size: int, time: int) -> list[_Arm]:
    """The `size` arms with the best quantile 1 − 1/(t + 1); low scores are good, so it lies below the mean."""
    z = NormalDist().inv_cdf(1 - 1 / (time + 1))
    return sorted(arms, key=lambda arm: arm.mean - z * math.sqrt(arm.variance))[:size]


def _halved(draft: PlanBuilder, arms: list[Sequenced], steps: int) -> list[tuple[Sequenced, float]]:
    """Sequences with their last score, those that went furthest first."""
    ahead = len(draft.problem.history.lrs_ahead)
    alive = _payable(draft, arms, steps)
    last = dict[Sequenced, float]()
    out: list[Sequenced] = []  # the first out of them first
    while alive and not draft.over:
        scores = dict(zip(alive, draft.run(alive, steps), strict=True))
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


def _payable(draft: PlanBuilder, arms: list[Sequenced], steps: int) -> list[Sequenced]:
    """As many arms, the first ones, as can go through all rounds within the budget; two at least, or what there is of them."""
    size = len(arms)
    while size > 2:
        alive = size
        length = steps
        needed = Cost()
        while alive:
            price = draft.price(arms[:alive], length)
            if price is None:
                return arms
            needed = needed + price
            alive = -(-alive // 2) if alive > 1 else 0
            length = 2 * length
        if draft.covers(needed):
            break
        size -= 1
    return arms[:size]
