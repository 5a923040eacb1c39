"""All statistics of a report by their paths; `evaluate` describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.evaluation import divergence, ranking
from trainenv.worldmodel.evaluation.choices import Choice, choices
from trainenv.worldmodel.evaluation.errors import MEDIAN, absolute_error, covered, crps, width
from trainenv.worldmodel.evaluation.noise import matters, truths
from trainenv.worldmodel.evaluation.regret import DEFAULT, regrets
from trainenv.worldmodel.evaluation.statistics import (
    AveragePrecision,
    Floats,
    Ints,
    Statistic,
    mean,
    share,
)
from trainenv.worldmodel.examples import TARGETS, Examples, Predictions

Path = tuple[str, ...]
Measures = dict[Path, Statistic]
Mean = Callable[[Floats, Ints], Statistic]

LEAST_RANKED = 4  # fewest options of a snapshot whose ranking is evaluated
TOP = 6  # number of candidates that are verified


def measures(examples: Examples, predictions: Predictions, noise: Floats, limit: float) -> Measures:
    """Compute all statistics of predictions.

    Args:
        examples: Branches and their outcomes.
        predictions: Predictions for these branches.
        noise: [n, 3] seed noise of each branch's Δ, by target.
        limit: Probability of divergence at which an alarm is raised.
    """
    found = choices(examples)
    picked = _picked(examples, predictions, found)
    mattering = matters(examples, noise)
    outcomes = truths(examples)
    whole: Measures = {}
    for place, target in enumerate(TARGETS):
        one = _Target(
            examples=examples,
            outcome=outcomes[:, place],
            noise=noise[:, place],
            quantiles=getattr(predictions, target),
            matters=mattering[:, place],
        )
        whole |= _below(one.errors(), target)
        whole |= _below(one.ranking(found), target)
        whole |= _below(one.intervals(picked), target, "intervals")
    whole |= _below(_divergence(examples, predictions, limit), "divergence")
    return whole | _below(_regrets(examples, predictions, noise, found), "regret")


def _below(found: Measures, *path: str) -> Measures:
    """Move statistics below a path of the report."""
    return {(*path, *rest): statistic for rest, statistic in found.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    """Forecasts and outcomes of one target.

    Attributes:
        examples: Branches.
        outcome: [n] true Δ.
        noise: [n] seed noise of Δ.
        quantiles: [n, 5] forecast quantiles of Δ.
        matters: [n] True where |Δ| is above 2 × the seed noise.
    """

    examples: Examples
    outcome: Floats
    noise: Floats
    quantiles: Floats
    matters: NDArray[np.bool_]

    def mean(self, values: Floats, rows: NDArray[np.bool_]) -> Statistic:
        """Return the mean of `values` [n] over the branches of a mask."""
        return mean(values[rows], self.examples.trunk[rows], len(self.examples.trunks))

    def errors(self) -> Measures:
        """Return the errors of candidates, of all and of those that matter."""
        found: Measures = {}
        tried = self.examples.candidate
        for name, score in (("mae", absolute_error), ("crps", crps)):
            values = score(self.quantiles, self.outcome)
            for where, rows in (("all", tried), ("mattering", tried & self.matters)):
                found[where, name] = self.mean(values, rows)
                found[where, f"{name}_in_noise"] = self.mean(values / self.noise, rows)
        mattering = np.where(
            np.isnan(self.outcome + self.noise), np.nan, self.matters.astype(np.float64)
        )
        return found | {("mattering", "share"): self.mean(mattering, tried)}

    def ranking(self, found: list[Choice]) -> Measures:
        """Return the scores of the order of options at each choice."""
        median = self.quantiles[:, MEDIAN]
        trunks = len(self.examples.trunks)
        known = [choice for choice in found if not np.isnan(choice.values(self.outcome)).any()]
        ranked = [choice for choice in known if len(choice) >= LEAST_RANKED]
        many = [choice for choice in known if len(choice) > TOP]

        def mean_of(score: Callable[[Floats, Floats], float], some: list[Choice]) -> Statistic:
            scores = [score(one.values(median), one.values(self.outcome)) for one in some]
            return mean(scores, [one.trunk for one in some], trunks)

        def recall(forecast: Floats, outcome: Floats) -> float:
            return ranking.recall_of_best(forecast, outcome, TOP)

        def by_chance(forecast: Floats, outcome: Floats) -> float:
            return ranking.recall_by_chance(outcome, TOP)

        return {
            ("ranking", "spearman"): mean_of(ranking.spearman, ranked),
            ("ranking", "best_in_top_6"): mean_of(recall, many),
            ("ranking", "best_in_top_6_by_chance"): mean_of(by_chance, many),
        }

    def intervals(self, picked: Floats) -> Measures:
        """Return coverage and width of the intervals; for `picked` see `_picked`."""
        hit = covered(self.quantiles, self.outcome)
        wide = width(self.quantiles)
        tried = self.examples.candidate
        wide = np.where(np.isnan(self.outcome), np.nan, wide)
        strata = self.examples.strata[self.examples.snapshot]
        found: Measures = {}
        groups: dict[Path, NDArray[np.bool_]] = {("marginal",): tried}
        groups |= {
            ("strata", str(name)): tried & (strata == name) for name in np.unique(strata[tried])
        }
        for path, rows in groups.items():
            found[*path, "coverage"] = self.mean(hit, rows)
            found[*path, "width"] = self.mean(wide, rows)
        found["marginal", "width_in_noise"] = self.mean(wide / self.noise, tried)
        known = np.where(np.isnan(self.outcome), np.nan, picked)
        trunk = self.examples.trunk
        trunks = len(self.examples.trunks)
        for name, values in (("coverage", hit), ("width", wide)):
            found["selected", name] = share(values * picked, known, trunk, trunks)
        return found


def _picked(examples: Examples, predictions: Predictions, found: list[Choice]) -> Floats:
    """Return 1 for the candidate with the lowest median of `annealed` at its snapshot, [n].

    Other candidates of a choice have 0, tied ones a share of 1, and all other branches NaN.
    """
    median = predictions.annealed[:, MEDIAN]
    picked = np.full(len(examples), np.nan)
    for choice in found:
        lowest = median[choice.rows] == median[choice.rows].min()
        picked[choice.rows] = lowest / lowest.sum()
    return picked


def _divergence(examples: Examples, predictions: Predictions, limit: float) -> Measures:
    rows = divergence.risky(examples)
    some = examples.where(rows)
    forecast = predictions.where(rows)
    trunk = some.trunk
    trunks = len(examples.trunks)
    happened = some.diverged >= 0
    chance = forecast.divergence
    caught, steps, false_alarm = divergence.leads(some, forecast, limit)
    by_decision = divergence.brier_by_decision(forecast.hazard, some.diverged)
    return {
        ("rate",): mean(happened, trunk, trunks),
        ("brier",): mean(divergence.brier(chance, happened), trunk, trunks),
        ("brier_by_decision",): mean(by_decision, trunk, trunks),
        ("auprc",): AveragePrecision(scores=chance, labels=happened, trunk=trunk, count=trunks),
        ("caught",): mean(caught, trunk, trunks),
        ("lead_steps",): mean(steps, trunk, trunks),
        ("false_alarms",): mean(false_alarm, trunk, trunks),
    }


def _regrets(
    examples: Examples, predictions: Predictions, noise: Floats, found: list[Choice]
) -> Measures:
    medians: Mapping[str, Floats] = {
        target: getattr(predictions, target)[:, MEDIAN] for target in TARGETS
    }
    truth: Mapping[str, Floats] = dict(zip(TARGETS, truths(examples).T))
    result: Measures = {}
    for place, target in enumerate(TARGETS):
        known, costs = regrets(found, medians, truth, target)
        trunk = [choice.trunk for choice in known]
        trunks = len(examples.trunks)
        unit = np.array([noise[choice.rows[0], place] for choice in known])  # [choices]
        for rule, cost in costs.items():
            result[target, rule, "mean"] = mean(cost, trunk, trunks)
            result[target, rule, "in_noise"] = mean(cost / unit, trunk, trunks)
        result[target, DEFAULT, "of_nothing"] = share(
            costs[DEFAULT], costs["nothing"], trunk, trunks
        )
    return result
