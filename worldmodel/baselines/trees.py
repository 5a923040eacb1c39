"""Gradient-boosted trees (Friedman 2001; histograms as in LightGBM, Ke et al.

2017; here scikit-learn's), the strongest baseline.

They see all there is of a branch: the state, the actions of each decision and summed up, the law's
Δ; what was not measured is put far below everything, where a split can tell it apart. A model a
quantile and target, by the pinball loss, on the scale of `scale`; quantiles that cross are sorted
(Chernozhukov, Fernández-Val & Galichon 2010). Divergence is a discrete-time hazard: one row a
decision that a branch was still sound at. The number of trees is where the loss on held-out trunks
is lowest; then all trunks are learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.tools.optional import require
from trainenv.types import UserError
from trainenv.worldmodel.baselines import inputs
from trainenv.worldmodel.baselines.folds import folds
from trainenv.worldmodel.baselines.points import predictions
from trainenv.worldmodel.baselines.risk import Risk, recovery_times
from trainenv.worldmodel.baselines.scale import acts, outcomes, unsquash
from trainenv.worldmodel.examples import LEVELS, Examples, Flags, Floats, Predictions
from trainenv.worldmodel.features import DECISIONS

MEDIAN = LEVELS.index(0.5)
_UNMEASURED = -1e6


@dataclass(frozen=True, kw_only=True)
class Trees:
    """Boosted trees.

    Args:
        iterations: the most trees a model has.
        learning_rate: what a tree's leaves are multiplied by.
        leaves: the most leaves of a tree.
        least_rows: the fewest branches in a leaf.
        patience: trees without a lower loss on held-out trunks after which no more are tried.

    Raises:
        UserError: a number is out of range.
    """

    iterations: int = 400
    learning_rate: float = 0.06
    leaves: int = 15
    least_rows: int = 20
    patience: int = 20

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("leaves", 2), ("least_rows", 1), ("patience", 1)):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= least):
                raise UserError(
                    f"{name} must be a whole number, at least {least}, found {getattr(self, name)!r}"
                )
        if not 0 < self.learning_rate <= 1:
            raise UserError(
                f"learning_rate must be above 0 and at most 1, found {self.learning_rate!r}"
            )

    def fit(self, examples: Examples) -> FittedTrees:
        """See `Baseline`; also a `UserError` where scikit-learn is missing."""
        out = next(folds(examples))
        x = columns(examples)
        y = outcomes(examples)
        y[~acts(examples)] = np.nan
        late = recovery_times(examples)
        rows, decision, lost = _at_risk(examples)
        return FittedTrees(
            targets=[self._quantiles(x, column, out) for column in y.T],
            recovery=self._quantiles(x, late, out),
            hazard=self._chance(np.column_stack([x[rows], decision]), lost, out[rows]),
            instability=self._chance(x, examples.fired, out),
        )

    def _quantiles(self, x: Floats, y: Floats, out: Flags) -> list[Any]:
        """A model a level; as many trees for each as the median wants."""
        known = ~np.isnan(y)
        x = x[known]
        y = y[known]
        out = out[known]
        if not len(y) or y.min() == y.max():
            return [Always(float(y[0]) if len(y) else 0.0)] * len(LEVELS)
        count = self._count(_regressor(LEVELS[MEDIAN], self._settings(early=True)), x, y, out)
        settings = self._settings(early=False) | {"max_iter": count}
        return [_regressor(level, settings).fit(x, y) for level in LEVELS]

    def _chance(self, x: Floats, y: NDArray[np.bool_], out: Flags) -> Any:
        """A model of the chance that `y` is true."""
        if y.all() or not y.any():
            return Always(float(y.all()))
        held_out_tells = 0 < y[out].sum() < out.sum() and 0 < y[~out].sum() < (~out).sum()
        early = _classifier(self._settings(early=True))
        count = self._count(early, x, y, out) if held_out_tells else max(1, self.iterations // 8)
        return _classifier(self._settings(early=False) | {"max_iter": count}).fit(x, y)

    def _count(self, model: Any, x: Floats, y: NDArray[Any], out: Flags) -> int:
        """The number of trees with the lowest loss on the branches `out`."""
        if not out.any() or out.all():
            return max(1, self.iterations // 8)
        model.fit(x[~out], y[~out], X_val=x[out], y_val=y[out])
        return max(1, int(np.argmax(model.validation_score_)))

    def _settings(self, *, early: bool) -> dict[str, Any]:
        return {
            "max_iter": self.iterations,
            "learning_rate": self.learning_rate,
            "max_leaf_nodes": self.leaves,
            "min_samples_leaf": self.least_rows,
            "early_stopping": early,
            "n_iter_no_change": self.patience,
            "random_state": 0,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedTrees:
    """What `Trees.fit` returns.

    Attributes:
        targets: for each target, a model a level.
        recovery: a model a level.
        hazard: of diverging in a decision, which is its last column.
        instability: of the index's firing.
    """

    targets: list[list[Any]]
    recovery: list[Any]
    hazard: Any
    instability: Any

    def predict(self, examples: Examples) -> Predictions:
        """See `Fitted`."""
        x = columns(examples)
        quantiles = np.stack(
            [np.stack([model.predict(x) for model in models], axis=1) for models in self.targets],
            axis=1,
        )
        return predictions(examples, unsquash(quantiles), lambda _: self._risk(x))

    def _risk(self, x: Floats) -> Risk:
        hazard = [
            _chances(self.hazard, np.column_stack([x, np.full(len(x), decision)]))
            for decision in range(DECISIONS)
        ]
        recovery = np.sort(np.stack([model.predict(x) for model in self.recovery], axis=1), axis=1)
        return Risk(
            hazard=np.stack(hazard, axis=1),
            instability=_chances(self.instability, x),
            recovery=np.clip(recovery, 0.0, DECISIONS),
        )


@dataclass(frozen=True)
class Always:
    """A model of what never differed."""

    value: float

    def predict(self, x: Floats) -> Floats:
        return np.full(len(x), self.value)


def columns(examples: Examples) -> Floats:
    """[n, D] all there is of each branch."""
    parts = (
        inputs.states(examples),
        inputs.decisions(examples),
        inputs.main_actions(examples),
        inputs.law(examples),
    )
    # Not NaN, which scikit-learn takes too, but not a column of nothing else (1.9.1 fails on one).
    return np.nan_to_num(np.concatenate(parts, axis=1), nan=_UNMEASURED)


def _at_risk(examples: Examples) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Rows and decisions at which branches were still sound, and whether they diverged there."""
    last = np.where(examples.diverged >= 0, examples.diverged, DECISIONS - 1)
    rows, decision = np.nonzero(np.arange(DECISIONS) <= last[:, None])
    return rows, decision, examples.diverged[rows] == decision


def _chances(model: Any, x: Floats) -> Floats:
    chances: Floats = (
        model.predict(x) if isinstance(model, Always) else model.predict_proba(x)[:, 1]
    )
    return chances


def _regressor(level: float, settings: dict[str, Any]) -> Any:
    return _ensemble().HistGradientBoostingRegressor(loss="quantile", quantile=level, **settings)


def _classifier(settings: dict[str, Any]) -> Any:
    return _ensemble().HistGradientBoostingClassifier(**settings)


def _ensemble() -> Any:
    require("sklearn", "this baseline")
    from sklearn import ensemble

    return ensemble
