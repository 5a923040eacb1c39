"""Value of paths of the learning rate to the end of the run, by an ensemble."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from trainenv.types import PathValues, RunHistory
from trainenv.worldmodel import features
from trainenv.worldmodel.paths.groups import LONG_SIZES, LONG_STEPS, STEPS
from trainenv.worldmodel.paths.inputs import (
    PATH,
    PathState,
    decision_steps,
    path_features,
    read_state,
    start_state,
    state_inputs,
)
from trainenv.worldmodel.paths.network import OUTPUTS, Ensemble

Floats = NDArray[np.float64]
_DECISION = features.STATE.index("decision")
_KNOWN = (math.log(decision_steps(STEPS[0])), math.log(decision_steps(LONG_STEPS[1])))
_LEAST_USUAL = math.log(min(size.lr for size in LONG_SIZES))
_PER_EFOLD = 0.03
"""Disagreement to add for each e-fold of budget or width outside those of the data, nats.

When the longest runs of the data had 1000 steps, gains of less than 0.02 nats that were followed in
runs of 2000 steps were losses.
"""
_COMMON = math.log(decision_steps(STEPS[1]))  # the greatest budget of most of the data
_PER_FEW_EFOLD = 0.012
"""Disagreement to add for each e-fold of a budget beyond it, within those of the data, nats.

Only 18 of 567 groups are of longer runs. On groups that were held out, the error rises from 0.026
nats to 0.045 over the 1.6 e-folds between the two kinds.
"""
_USUAL_PEAK = 0.97  # quantile of the recent rates that counts as their peak: spikes are shorter


@dataclass
class PathValueModel:
    """A `trainenv.types.PathModel`: deterministic; calls change nothing but a cache.

    Args:
        ensemble: Fitted ensemble.
        width: Factor on the width of the intervals, from calibration.
        blind: Flag: nothing of the run is shown to the ensemble, an ablation that the fit prepares.
    """

    ensemble: Ensemble
    width: float = 1.0
    blind: bool = False
    _last: tuple[RunHistory, PathState] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.ensemble.eval().requires_grad_(False)

    def path_values(self, history: RunHistory, paths: Floats, /) -> PathValues:
        """Value paths. See `trainenv.types.PathModel`.

        Raises:
            UserError: The history is too short, or its last step is not finite.
        """
        decisions = paths.shape[1]
        last = self._last
        if last is None or last[0] is not history or len(last[1].schedule) != decisions:
            last = (history, path_state(history, decisions))
            self._last = last
        return self.values(last[1], paths)

    @torch.inference_mode()
    def values(self, state: PathState, rest: Floats) -> PathValues:
        """Value paths from a state.

        Args:
            state: State of the run now.
            rest: [K, L] ln factors on the rate now, at each decision to come.
        """
        with_hold = np.concatenate([np.zeros((1, rest.shape[1])), rest])
        paths = path_features(
            state.schedule[None],
            with_hold,
            np.full(len(with_hold), state.now),
            np.full(len(with_hold), state.peak),
            np.full(len(with_hold), state.usual),
        )
        begun = self.ensemble.of_state(_float(state_inputs(state.features[None])), self.blind)
        found = (
            self.ensemble.of_paths(begun, _float(paths), self.blind).double().numpy()
        )  # [M, K + 1, 1 + Q]
        change = found[:, 1:, 0] - found[:, :1, 0]
        quantiles = state.level + found[:, 1:, 1:].mean(0)
        middle = quantiles[:, quantiles.shape[1] // 2]
        unknown = extrapolation(state) * np.any(rest != 0, axis=1)
        return PathValues(
            change=change.mean(0),
            disagreement=change.std(0) + unknown,
            low=middle + self.width * (quantiles[:, 0] - middle),
            high=middle + self.width * (quantiles[:, -1] - middle),
        )

    @property
    def flops_per_path(self) -> float:
        """FLOPs of the value of one path."""
        width = self.ensemble.shape.width
        weights = width * (len(PATH) + width + OUTPUTS)
        return 2.0 * self.ensemble.shape.members * weights


def path_state(history: RunHistory, decisions: int) -> PathState:
    """Return the state at the end of a history, with the rest of the run in some decisions.

    Raises:
        UserError: The history is too short, or its last step is not finite.
    """
    usual = math.log(history.usual_lr) if history.usual_lr > 0 else math.nan
    if not history.telemetry:
        return _at_start(history, decisions, usual)
    state, level, columns, context = read_state(history)
    now = math.log(max(float(columns["lr_scale"][-1]), 1e-9))
    means = _means(context.lrs_ahead * math.exp(-now), decisions)
    peak = float(np.quantile(columns["lr"], _USUAL_PEAK))
    return PathState(
        features=state,
        level=level,
        schedule=means,
        now=now,
        peak=math.log(max(peak, 1e-30)),
        usual=usual,
    )


def _at_start(history: RunHistory, decisions: int, usual: float) -> PathState:
    """Return the state before the first step, when only the schedule and the size are known."""
    means = _means(np.asarray(history.lrs_ahead, dtype=np.float64), decisions)
    return PathState(
        features=start_state(len(history.lrs_ahead)),
        level=math.nan,
        schedule=means,
        now=0.0,
        peak=math.log(max(means[0], 1e-30)),
        usual=usual,
    )


def _means(lrs: Floats, decisions: int) -> Floats:
    """Return the mean learning rate during each of some decisions of equal length."""
    borders = np.linspace(0, len(lrs), decisions + 1)
    sums = np.concatenate([[0.0], np.cumsum(lrs)])
    means: Floats = np.diff(np.interp(borders, np.arange(len(sums)), sums)) * decisions / len(lrs)
    return means


def extrapolation(state: PathState) -> float:
    """Return the disagreement to add where data are few or none, nats.

    Errors there are the same in all members, so that they agree on them.
    """
    unknown = few = 0.0
    budget = state.features[_DECISION]
    if math.isfinite(budget):
        unknown += max(budget - _KNOWN[1], _KNOWN[0] - budget, 0.0)
        few = max(min(budget, _KNOWN[1]) - _COMMON, 0.0)
    if math.isfinite(state.usual):
        unknown += max(_LEAST_USUAL - state.usual, 0.0)  # a usual rate falls as the width grows
    return _PER_EFOLD * unknown + _PER_FEW_EFOLD * few


def _float(values: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
