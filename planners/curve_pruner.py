"""Pruning by learning-curve extrapolation (Domhan et al.

2015): hopeless candidates are dropped before the model sees them.

A forecaster of loss curves is fitted to the history once and extrapolated to the *end of the run*
under the learning rates that each candidate would bring. A candidate is dropped if P(its final loss
is below the best one's) < `chance`.

Judged at the end and not N steps ahead, since lower learning rates look better on the way. A curve
knows of the learning rate
only: candidates that differ in anything else share its judgement, and those that leave the learning
rate alone are never dropped. Hand in a forecaster that knows of the learning rate (the multi-power
law); one that does not calls all equal, and drops none. Forecast errors of candidates have the same
sign, mostly, so taking them as independent of one another errs on the side of keeping.

    CurvePruner(forecaster=trainenv.worldmodel.curves.make("anchored-multi-power"),
    history=trainenv.worldmodel.curves.History)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.hyperparameters import number, whole
from trainenv.types import Intervention, RunHistory

Floats = NDArray[np.float64]


class CurveForecast(Protocol):
    """Mean and standard deviation of losses, nats per token, [K, Q] each."""

    @property
    def mean(self) -> Floats: ...
    @property
    def std(self) -> Floats: ...


class FittedCurve(Protocol):
    """A forecaster that has seen a history."""

    def predict(self, steps: Any, lrs: Any, at: Sequence[int] | None = None) -> CurveForecast:
        """Losses at the positions `at` of `steps` [H], all after the history, under learning rates [K, H]."""
        ...


class CurveForecaster(Protocol):
    """What forecasts loss curves: those of `trainenv.worldmodel.curves`, for instance."""

    def fit(self, history: Any, /) -> FittedCurve:
        """Learn from one curve."""
        ...


@dataclass(frozen=True, kw_only=True)
class CurvePruner:
    """Drop candidates whose learning rate leaves them no chance of the best final loss.

    Args:
        forecaster: of loss curves.
        history: makes what the forecaster is fitted to, of `steps`, `losses` and `lrs` [n]
            (keywords).
        chance: probability of being the better one below which a candidate is dropped; at most 0.5.
        points: how many learning rates stand for the rest of the run.

    Raises:
        UserError: a hyperparameter is out of range.
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
        """For each sequence why it is dropped; empty where it stays."""
        factors = [tuple(done.lr_scale for done in sequence) for sequence in sequences]
        paths = list(dict.fromkeys([(1.0,), *factors]))  # doing nothing is the first
        if len(paths) == 1 or not history.lrs_ahead:
            return [""] * len(sequences)
        now = history.telemetry[-1].step
        ends = np.unique(
            np.linspace(0, len(history.lrs_ahead), self.points + 1).round().astype(np.int64)
        )
        lrs = np.stack([_lrs(history, path, ends) for path in paths])  # [K, H]
        end = self._fitted(history).predict(now + ends[1:], lrs, at=[-1])
        mean = np.asarray(end.mean)[:, 0]
        std = np.asarray(end.std)[:, 0]
        best = int(np.argmin(mean))
        apart = np.sqrt(std**2 + std[best] ** 2)
        better = [
            _normal(float((mean[best] - mean[k]) / apart[k])) if k != best else 1.0
            for k in range(len(paths))
        ]
        verdicts = {
            path: f"pruned: P(final loss below that of the best learning rate) = {p:.3f} < {self.chance:g}"
            for path, p in zip(paths, better, strict=True)
            if p < self.chance and any(scale != 1 for scale in path)
        }
        return [verdicts.get(path, "") for path in factors]

    def _fitted(self, history: RunHistory) -> FittedCurve:
        rows = history.telemetry
        return self.forecaster.fit(
            self.history(
                steps=[t.step for t in rows],
                losses=[t.loss for t in rows],
                lrs=[t.lr for t in rows],
            )
        )


def _lrs(history: RunHistory, path: tuple[float, ...], ends: NDArray[np.int64]) -> Floats:
    """Mean learning rate of each block of steps that ends at `ends[1:]`, with the factors of a path put in force: [H]."""
    scale = np.ones(len(history.lrs_ahead))
    for decision, factor in enumerate(path):
        scale[decision * history.decision_steps :] *= factor
    blocks: Floats = np.add.reduceat(np.asarray(history.lrs_ahead) * scale, ends[:-1]) / np.diff(
        ends
    )
    return blocks


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
