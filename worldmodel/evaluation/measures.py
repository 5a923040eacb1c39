"""Every number that is said of a model, by its path in the report: see `evaluate` for what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

LEAST_RANKED = 4  # different candidates, doing nothing among them
TOP = 6  # candidates that are verified


def measures(examples: Examples, predictions: Predictions, noise: Floats, limit: float) -> Measures:
    """All statistics of a model's predictions for the branches of `examples`, with `noise` [n, 3]."""
    found = choices(examples)
    whole: Measures = {}
    for place, target in enumerate(TARGETS):
        one = _Target(
            examples,
            target,
            noise[:, place],
            getattr(predictions, target),
            matters(examples, noise)[:, place],
        )
        whole |= {(target, *path): statistic for path, statistic in one.errors().items()}
        whole |= {(target, *path): statistic for path, statistic in one.ranking(found).items()}
        picked = _picked(examples, predictions, found)
        whole |= {
            (target, "intervals", *path): statistic
            for path, statistic in one.intervals(picked).items()
        }
    whole |= {
        ("divergence", *path): statistic
        for path, statistic in _divergence(examples, predictions, limit).items()
    }
    return whole | {
        ("regret", *path): statistic
        for path, statistic in _regrets(examples, predictions, noise, found).items()
    }


class _Target:
    """What is said of the forecasts of one target: its true Δ's [n], its noise [n], its quantiles [n, 5]."""

    def __init__(
        self,
        examples: Examples,
        target: str,
        noise: Floats,
        quantiles: Floats,
        matters: NDArray[np.bool_],
    ) -> None:
        self.examples = examples
        self.noise = noise
        self.quantiles = quantiles
        self.matters = matters
        self.outcome: Floats = truths(examples)[:, TARGETS.index(target)]

    def mean(self, values: Floats, rows: NDArray[np.bool_]) -> Statistic:
        return mean(values[rows], self.examples.trunk[rows], len(self.examples.trunks))

    def errors(self) -> Measures:
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
        median = self.quantiles[:, MEDIAN]
        trunks = len(self.examples.trunks)
        pairs = [(choice, choice.values(median), choice.values(self.outcome)) for choice in found]
        known = [pair for pair in pairs if not np.isnan(pair[2]).any()]
        ranked = [pair for pair in known if len(pair[0]) >= LEAST_RANKED]
        many = [pair for pair in known if len(pair[0]) > TOP]

        def over(
            score: Callable[[Floats, Floats], float], those: list[tuple[Choice, Floats, Floats]]
        ) -> Statistic:
            return mean(
                [score(a, b) for _, a, b in those], [choice.trunk for choice, _, _ in those], trunks
            )

        return {
            ("ranking", "spearman"): over(ranking.spearman, ranked),
            ("ranking", "best_in_top_6"): over(
                lambda a, b: ranking.recall_of_best(a, b, TOP), many
            ),
            ("ranking", "best_in_top_6_by_chance"): over(
                lambda _, b: ranking.recall_by_chance(b, TOP), many
            ),
        }

    def intervals(self, picked: Floats) -> Measures:
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
            found[*path, "coverage"], found[*path, "width"] = (
                self.mean(hit, rows),
                self.mean(wide, rows),
            )
        found["marginal", "width_in_noise"] = self.mean(wide / self.noise, tried)
        known = np.where(np.isnan(self.outcome), np.nan, picked)
        trunk = self.examples.trunk
        trunks = len(self.examples.trunks)
        for name, values in (("coverage", hit), ("width", wide)):
            found["selected", name] = share(values * picked, known, trunk, trunks)
        return found


def _picked(examples: Examples, predictions: Predictions, found: list[Choice]) -> Floats:
    """[n] whether a branch is the candidate with the lowest median of `annealed`: 1, 0, or a share of a tie; else NaN."""
    median = predictions.annealed[:, MEDIAN]
    picked = np.full(len(examples), np.nan)
    for choice in found:
        lowest = median[choice.rows] == median[choice.rows].min()
        picked[choice.rows] = lowest / lowest.sum()
    return picked


def _divergence(examples: Examples, predictions: Predictions, limit: float) -> Measures:
    rows = divergence.risky(examples)
    asked = examples.where(rows)
    told = predictions.where(rows)
    trunk = asked.trunk
    trunks = len(examples.trunks)
    happened = asked.diverged >= 0
    chance = told.divergence
    caught, steps, false_alarm = divergence.leads(asked, told, limit)
    return {
        ("rate",): mean(happened, trunk, trunks),
        ("brier",): mean(divergence.brier(chance, happened), trunk, trunks),
        ("brier_by_decision",): mean(
            divergence.brier_by_decision(told.hazard, asked.diverged), trunk, trunks
        ),
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
        unit = np.array([noise[choice.rows[0], place] for choice in known])  # one a snapshot
        for rule, cost in costs.items():
            result[target, rule, "mean"] = mean(cost, trunk, trunks)
            result[target, rule, "in_noise"] = mean(cost / unit, trunk, trunks)
        result[target, DEFAULT, "of_nothing"] = share(
            costs[DEFAULT], costs["nothing"], trunk, trunks
        )
    return result
