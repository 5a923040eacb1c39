"""Pruning by learning-curve extrapolation (Domhan et al. 2015): drop candidates without a chance.

A forecaster of loss curves is fitted to the history once and extrapolated to the *end of the run*
under the learning rates of each candidate. A candidate is dropped before the model sees it if

    P(its final loss is below that of the best candidate) < chance

The end counts, and not the loss N steps ahead, because lower learning rates look better on the way.
A curve depends on the learning rate only: candidates that differ in anything else share a forecast,
and candidates that leave the learning rate alone are never dropped. So use a forecaster that
depends on the learning rate (the multi-power law); one that does not calls all candidates equal and
drops none. The errors of its forecasts mostly have the same sign; treating them as independent
keeps too many candidates rather than too few.

    from trainenv.worldmodel import curves

    CurvePruner(forecaster=curves.make("anchored-multi-power"), history=curves.History)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainenv.tools.checks import number, whole
from trainenv.types import Intervention, RunHistory

Floats = NDArray[np.float64]


class CurveForecast(Protocol):
    """Mean and standard deviation of losses, nats per token, [K, Q] each."""

    @property
    def mean(self) -> Floats: ...
    @property
    def std(self) -> Floats: ...


class FittedCurve(Protocol):
    """A forecaster fitted to a history."""

    def predict(self, steps: Any, lrs: Any, at: Sequence[int] | None = None) -> CurveForecast:
        """Forecast losses.

        Args:
            steps: Steps after the history, [H].
            lrs: Learning rates at these steps, [K, H].
            at: Positions in `steps` to forecast, [Q]; None for all.
        """
        ...


class CurveForecaster(Protocol):
    """A forecaster of loss curves, such as those of `trainenv.worldmodel.curves`."""

    def fit(self, history: Any, /) -> FittedCurve:
        """Fit one curve."""
        ...


@dataclass(frozen=True, kw_only=True)
class CurvePruner:
    """Drop candidates whose learning rate leaves no chance of the best final loss.

    Args:
        forecaster: Forecaster of loss curves.
        history: Function that makes the forecaster's history from the keyword arguments `steps`,
            `losses` and `lrs`, [n] each.
        chance: Least probability of being the better one that keeps a candidate; at most 0.5.
        points: Number of learning rates that represent the rest of the run.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    forecaster: CurveForecaster
    history: Callable[..., Any]
    chance: float = 0.05
    points: int = 64

    def __post_init__(self) -> None:
        number("chance", self.chance, least=0, most=0.5)
        whole("points", self.points, least=2)

    def hopeless(
        self, history: RunHistory, sequences: Sequence[Sequence[Intervention]], /
    ) -> list[str]:
        """Return for each sequence why it is dropped; empty if it stays."""
        factors = [tuple(done.lr_scale for done in sequence) for sequence in sequences]
        paths = list(dict.fromkeys([(1.0,), *factors]))  # doing nothing is the first
        if len(paths) == 1 or not history.lrs_ahead:
            return [""] * len(sequences)
        now = history.telemetry[-1].step
        ahead = len(history.lrs_ahead)
        ends = np.unique(np.linspace(0, ahead, self.points + 1).round().astype(np.int64))  # [H + 1]
        lrs = np.stack([_lrs(history, path, ends) for path in paths])  # [K, H]
        end = self._fit(history).predict(now + ends[1:], lrs, at=[-1])
        chances = _chances(np.asarray(end.mean)[:, 0], np.asarray(end.std)[:, 0])
        reasons = {
            path: f"pruned: P(final loss below that of the best learning rate) = {p:.3f} "
            f"< {self.chance:g}"
            for path, p in zip(paths, chances, strict=True)
            if p < self.chance and any(scale != 1 for scale in path)
        }
        return [reasons.get(path, "") for path in factors]

    def _fit(self, history: RunHistory) -> FittedCurve:
        rows = history.telemetry
        return self.forecaster.fit(
            self.history(
                steps=[t.step for t in rows],
                losses=[t.loss for t in rows],
                lrs=[t.lr for t in rows],
            )
        )


def _lrs(history: RunHistory, path: tuple[float, ...], ends: NDArray[np.int64]) -> Floats:
    """Return the mean learning rate of each block of steps under the factors of a path, [H].

    Args:
        history: History with the learning rates ahead.
        path: Factor of the learning rate at each decision.
        ends: Steps from now at which blocks end, [H + 1], 0 first.
    """
    scale = np.ones(len(history.lrs_ahead))
    for decision, factor in enumerate(path):
        scale[decision * history.decision_steps :] *= factor
    sums = np.add.reduceat(np.asarray(history.lrs_ahead) * scale, ends[:-1])
    blocks: Floats = sums / np.diff(ends)
    return blocks


def _chances(mean: Floats, std: Floats) -> list[float]:
    """Return the probability that each normal loss is below the best one, [K]; 1 for the best."""
    best = int(np.argmin(mean))
    apart = np.sqrt(std**2 + std[best] ** 2)
    chances = [1.0] * len(mean)
    for place in range(len(mean)):
        if place != best:
            chances[place] = _normal_cdf(float((mean[best] - mean[place]) / apart[place]))
    return chances


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
