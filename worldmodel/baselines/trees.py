"""Gradient-boosted trees by scikit-learn, the strongest baseline.

Friedman 2001; with histograms as in LightGBM (Ke et al. 2017).

The inputs are the state, the actions by decision and in summary, and Δ by the law. A value that was
not measured is set far below all others, so that a split can separate it.

- Δ: one model for each target and quantile, with the pinball loss, on the scale of `scale`.
  Quantiles that cross are sorted (Chernozhukov, Fernández-Val & Galichon 2010).
- Divergence: a discrete-time hazard; each branch has one row for each decision that it reached
  without divergence.
- Number of trees: the one with the lowest loss on held-out trunks; the final fit is on all trunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.tools.optional import require
from trainenv.types import DECISIONS, UserError
from trainenv.worldmodel.baselines import inputs
from trainenv.worldmodel.baselines.folds import folds
from trainenv.worldmodel.baselines.points import predictions
from trainenv.worldmodel.baselines.risk import Risk, recovery_times
from trainenv.worldmodel.baselines.scale import acts, outcomes, unsquash
from trainenv.worldmodel.examples import LEVELS, Examples, Flags, Floats, Predictions

MEDIAN = LEVELS.index(0.5)
_UNMEASURED = -1e6  # input of a value that was not measured


@dataclass(frozen=True, kw_only=True)
class Trees:
    """A baseline of gradient-boosted trees.

    Args:
        iterations: Largest number of trees in a model.
        learning_rate: Factor on the values of each tree's leaves.
        leaves: Largest number of leaves of a tree.
        least_rows: Smallest number of branches in a leaf.
        patience: Number of trees without a lower loss on held-out trunks after which fitting stops.

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
                    f"{name} must be a whole number, at least {least}, "
                    f"found {getattr(self, name)!r}"
                )
        if not 0 < self.learning_rate <= 1:
            raise UserError(
                f"learning_rate must be above 0 and at most 1, found {self.learning_rate!r}"
            )

    def fit(self, examples: Examples) -> FittedTrees:
        """See `Baseline`.

        Raises:
            UserError: scikit-learn is missing, or fewer than two trunks have candidates.
        """
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
        """Fit one model per level; all have the number of trees that is best for the median."""
        known = ~np.isnan(y)
        x = x[known]
        y = y[known]
        out = out[known]
        if not len(y):
            return [ConstantModel(0.0)] * len(LEVELS)
        if y.min() == y.max():
            return [ConstantModel(float(y[0]))] * len(LEVELS)
        count = self._count(_regressor(LEVELS[MEDIAN], self._settings(early=True)), x, y, out)
        settings = self._settings(early=False) | {"max_iter": count}
        return [_regressor(level, settings).fit(x, y) for level in LEVELS]

    def _chance(self, x: Floats, y: NDArray[np.bool_], out: Flags) -> Any:
        """Fit a model of the probability that `y` is true."""
        if y.all() or not y.any():
            return ConstantModel(float(y.all()))
        count = self._default_count
        both_in_each = 0 < y[out].sum() < out.sum() and 0 < y[~out].sum() < (~out).sum()
        if both_in_each:
            count = self._count(_classifier(self._settings(early=True)), x, y, out)
        return _classifier(self._settings(early=False) | {"max_iter": count}).fit(x, y)

    def _count(self, model: Any, x: Floats, y: NDArray[Any], out: Flags) -> int:
        """Return the number of trees with the lowest loss on the held-out branches `out`."""
        if not out.any() or out.all():
            return self._default_count
        model.fit(x[~out], y[~out], X_val=x[out], y_val=y[out])
        return max(1, int(np.argmax(model.validation_score_)))

    @property
    def _default_count(self) -> int:
        """Number of trees if held-out branches cannot determine it."""
        return max(1, self.iterations // 8)

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
    """Fitted trees.

    Attributes:
        targets: Models of Δ: for each target one per level.
        recovery: Models of the recovery time, one per level.
        hazard: Model of divergence in a decision; the decision is its last column.
        instability: Model of the firing of the index.
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
class ConstantModel:
    """A model of a value that was the same in all branches."""

    value: float

    def predict(self, x: Floats) -> Floats:
        return np.full(len(x), self.value)


def columns(examples: Examples) -> Floats:
    """Return all inputs of each branch, [n, D]."""
    parts = (
        inputs.states(examples),
        inputs.decisions(examples),
        inputs.main_actions(examples),
        inputs.law(examples),
    )
    # scikit-learn accepts NaN, but 1.9.1 fails on a column that holds nothing else.
    return np.nan_to_num(np.concatenate(parts, axis=1), nan=_UNMEASURED)


def _at_risk(examples: Examples) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Return the decisions that branches reached without divergence before.

    Returns:
        Row and decision of each, and a mask of those in which the branch diverged.
    """
    last = np.where(examples.diverged >= 0, examples.diverged, DECISIONS - 1)
    rows, decision = np.nonzero(np.arange(DECISIONS) <= last[:, None])
    return rows, decision, examples.diverged[rows] == decision


def _chances(model: Any, x: Floats) -> Floats:
    if isinstance(model, ConstantModel):
        return model.predict(x)
    chances: Floats = model.predict_proba(x)[:, 1]
    return chances


def _regressor(level: float, settings: dict[str, Any]) -> Any:
    return _ensemble().HistGradientBoostingRegressor(loss="quantile", quantile=level, **settings)


def _classifier(settings: dict[str, Any]) -> Any:
    return _ensemble().HistGradientBoostingClassifier(**settings)


def _ensemble() -> Any:
    require("sklearn", "this baseline")
    from sklearn import ensemble

    return ensemble
