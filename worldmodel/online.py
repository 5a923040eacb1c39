"""Online learning from verified branches, without forgetting the pretraining data.

The idea is that of online speculative decoding (Liu et al. 2023).

    online = OnlineModel(worldmodel.load_pretrained(), rehearsal)
    online.learn([Rollout(run="mine", history=history, interventions=(…,), annealed=-0.012)])
    online.model.forecast(history, interventions)

Every rollout is forecast with the current model before it is learned, so its error is an honest
test of the intervals. Its scores join the calibrations at once, and the level of each target's
intervals follows the misses (ACI, `conformal.adaptive`).

The networks are fitted anew after every `refresh` rollouts, on all rollouts kept and on about as
many branches of the pretraining data. Each fit starts from the pretrained networks: one that starts
from the last fit would drift, and it takes the same few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.types import DECISIONS, LOOKS, Rollout, UserError
from trainenv.worldmodel import features
from trainenv.worldmodel.calibration import ALPHA, Calibrations, branch_strata, units
from trainenv.worldmodel.conformal import AdaptiveLevel, Calibration
from trainenv.worldmodel.examples import TARGETS, Examples
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.law_prior import prior
from trainenv.worldmodel.model import Model, action_features
from trainenv.worldmodel.training import Training, fit

_NEW = "online/"  # prefix of the names of new runs, which tells them from the pretraining data


@dataclass(frozen=True, kw_only=True)
class Online:
    """Hyperparameters of online learning.

    Args:
        refresh: Number of rollouts after which the networks are fitted anew.
        keep: Number of newest rollouts that are kept.
        training: Hyperparameters of each fit.
        level: Rule by which the level of the intervals follows late labels.

    Raises:
        UserError: a count is below 1.
    """

    refresh: int = 32
    keep: int = 2048
    training: Training = field(default_factory=lambda: Training(epochs=4, lr=5e-4, dropout=0.0))
    level: AdaptiveLevel = field(default_factory=lambda: AdaptiveLevel(alpha=ALPHA, gamma=0.05))

    def __post_init__(self) -> None:
        for name in ("refresh", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, found {getattr(self, name)!r}")


class OnlineModel:
    """A world model that learns from rollouts.

    Args:
        pretrained: Model to start from; it is never changed.
        rehearsal: Branches of the pretraining data (`serialization.load_rehearsal`).
        how: Hyperparameters of online learning.

    Attributes:
        model: Newest model, a new object after each change.
        flops: FLOPs spent so far on fitting the networks.
    """

    def __init__(self, pretrained: Model, rehearsal: Examples, how: Online | None = None) -> None:
        self.how = how or Online()
        self._pretrained = pretrained
        self._rehearsal = rehearsal
        self._start()

    def _start(self) -> None:
        self._kept: Examples | None = None
        self._learned: list[dict[str, Any]] = []
        self.flops = 0.0
        self._runs: dict[str, int] = {}  # numbers of the new runs, in the order first seen
        self._waiting = 0
        self._levels = {target: self.how.level.init() for target in TARGETS}
        self.model = self._pretrained

    def learn(self, rollouts: Sequence[Rollout], /) -> None:
        """Learn from rollouts, in the order they were measured."""
        if rollouts:
            columns = read(rollouts)
            self._learned.append(columns)
            self.learn_examples(examples_of(columns))

    def price(self, rollouts: int) -> float:
        """Return the FLOPs that learning from this number of rollouts takes at most."""
        if self._waiting + rollouts < self.how.refresh:
            return 0.0
        kept = rollouts
        if self._kept is not None:
            kept += len(self._kept)
        kept = min(self.how.keep, kept)
        return self._fit_flops(max(2 * len(self._rehearsal), len(self._rehearsal) + 4 * kept))

    def _fit_flops(self, examples: int) -> float:
        """Return the FLOPs of fitting the networks to this number of branches."""
        weights = sum(p.numel() for p in self._pretrained.networks.parameters())
        return 6.0 * DECISIONS * weights * examples * self.how.training.epochs

    def state_dict(self) -> dict[str, Any]:
        """Return the rollouts learned from, as JSON values; learning them again is exact."""
        return {"learned": self._learned}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Start anew and learn from the rollouts of another model's `state_dict`."""
        flops = self.flops
        self._start()
        for columns in state["learned"]:
            self._learned.append(dict(columns))
            self.learn_examples(examples_of(columns))
        self.flops = flops  # the run is not charged for learning again

    def learn_examples(self, fresh: Examples) -> None:
        """Learn from branches of a data set; each trunk counts as a run."""
        names = [name.removeprefix(_NEW) for name in fresh.trunks]
        fresh = self.model.seen(fresh)
        fresh = replace(fresh, trunks=tuple(f"{_NEW}{name}" for name in names))
        if self.model.calibrations is not None:
            calibrations = self._recalibrated(self.model.calibrations, fresh)
            self.model = self.model.with_parts(self.model.networks, calibrations)
        kept = fresh
        if self._kept is not None:
            kept = concatenated([self._kept, fresh])
        self._kept = _used(kept.where(np.arange(len(kept))[-self.how.keep :]))
        self._waiting += len(fresh)
        if self._waiting >= self.how.refresh:
            self._refresh()

    def report(self) -> dict[str, dict[str, float]]:
        """Return the measured misses of the intervals by target; see `AdaptiveLevel.report`."""
        return {target: self.how.level.report(state) for target, state in self._levels.items()}

    def _refresh(self) -> None:
        """Fit the pretrained networks to the rollouts kept and to as much of the old data."""
        assert self._kept is not None
        self._waiting = 0
        old = self._rehearsal
        # New and old branches weigh the same in all, but one rollout at most as four old branches.
        times = min(4, max(1, round(len(old) / len(self._kept))))
        both = concatenated([old, *[self._kept] * times])
        networks = fit(both, self.how.training, start=self._pretrained.networks)
        self.flops += self._fit_flops(len(both))
        self.model = self.model.with_parts(networks, self.model.calibrations)

    def _recalibrated(self, calibrations: Calibrations, fresh: Examples) -> Calibrations:
        """Return calibrations with the scores of new branches, and levels moved by their misses."""
        some = fresh.where(fresh.candidate)
        if not len(some):
            return calibrations
        raw = self.model.raw(some)
        strata = branch_strata(some)
        calibrated = calibrations.apply(raw, strata)
        intervals = dict(calibrations.intervals)
        alpha = dict(calibrations.alpha)
        for target in TARGETS:
            outcome = getattr(some, target)
            known = np.isfinite(outcome)
            if not known.any():
                continue
            quantiles = units(getattr(raw, target))[known]
            runs = np.array([some.trunks[run] for run in some.trunk[known]])
            for run in runs.tolist():
                self._runs.setdefault(run, len(self._runs))
            assert self._pretrained.calibrations is not None
            first = int(self._pretrained.calibrations.intervals[target].trunks.max()) + 1
            codes = np.array([first + self._runs[run] for run in runs.tolist()])
            intervals[target] = _extended(
                intervals[target], quantiles, units(outcome[known]), codes, list(strata[known])
            )
            bounds = getattr(calibrated, target)[known]
            missed = (outcome[known] < bounds[:, 0]) | (outcome[known] > bounds[:, -1])
            for run in np.unique(runs):
                self._move_level(target, str(run), missed[runs == run])
            alpha[target] = self.how.level.level(self._levels[target])
        return replace(calibrations, intervals=intervals, alpha=alpha)

    def _move_level(self, target: str, run: str, missed: NDArray[np.bool_]) -> None:
        """Move a target's level by labels of one run that arrived together.

        These share the future of the run, so together they weigh as one label.
        """
        state = self._levels[target]
        rule = replace(self.how.level, gamma=self.how.level.gamma / len(missed))
        tickets = [rule.issue(state, run=run)[0] for _ in missed]
        rule.learn(state, dict(zip(tickets, missed.tolist(), strict=True)))


def read(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return rollouts as JSON values: for each column a list with one entry per rollout."""
    columns: dict[str, list[Any]] = {}
    for rollout in rollouts:
        telemetry, context = features.read(rollout.history)
        actions = action_features([rollout.interventions])  # [1, 4, A]
        row = {
            "run": rollout.run,
            "states": features.state(telemetry, context).tolist(),
            "actions": actions[0].tolist(),
            "law": prior(telemetry, context, actions[..., 0])[0].tolist(),
            "looks": [*rollout.looks, *[math.nan] * (LOOKS - len(rollout.looks))],
            "annealed": rollout.annealed,
            "final": rollout.final,
            "diverged": rollout.diverged,
            "fired": rollout.fired,
            "decision_steps": context.decision,
            "flagged": rollout.history.flagged_ahead > 0,
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def examples_of(columns: Mapping[str, Any]) -> Examples:
    """Convert columns from `read` to branches; a value that was not measured is NaN."""
    count = len(columns["run"])
    runs = sorted(set(columns["run"]))
    measured = {
        name: np.array(columns[name], dtype=np.float64)
        for name in ("states", "actions", "law", "looks", "annealed", "final")
    }
    return Examples(
        trunks=tuple(runs),
        trunk=np.array([runs.index(run) for run in columns["run"]], dtype=np.int64),
        snapshot=np.arange(count),
        kind=np.array(["sequence"] * count),
        after=np.full((count, DECISIONS, len(STATE)), math.nan),
        fall=np.full((count, DECISIONS), math.nan),
        to_end=np.full(count, math.nan),
        diverged=np.array(columns["diverged"], dtype=np.int64),
        fired=np.array(columns["fired"], dtype=np.bool_),
        recovery=np.full(count, math.nan),
        recovered=np.zeros(count, dtype=np.bool_),
        decision_steps=np.array(columns["decision_steps"], dtype=np.int64),
        strata=np.array(["online/rollout"] * count),
        flagged=np.array(columns["flagged"], dtype=np.bool_),
        **measured,
    )


def concatenated(parts: Sequence[Examples]) -> Examples:
    """Concatenate examples; trunks of the same name become one."""
    names: dict[str, int] = {}
    for part in parts:
        for name in part.trunks:
            names.setdefault(name, len(names))
    starts = np.cumsum([0, *(len(part.states) for part in parts)])
    columns: dict[str, Any] = {
        one.name: np.concatenate([getattr(part, one.name) for part in parts])
        for one in fields(Examples)
        if one.name not in ("trunks", "trunk", "snapshot")
    }
    trunk = [
        np.array([names[name] for name in part.trunks], dtype=np.int64)[part.trunk]
        for part in parts
    ]
    snapshot = [part.snapshot + start for part, start in zip(parts, starts)]
    return Examples(
        trunks=tuple(names),
        trunk=np.concatenate(trunk),
        snapshot=np.concatenate(snapshot),
        **columns,
    )


def _used(examples: Examples) -> Examples:
    """Drop snapshots without branches: with them, memory would grow for ever."""
    used, snapshot = np.unique(examples.snapshot, return_inverse=True)
    columns = {
        name: getattr(examples, name)[used]
        for name in ("states", "decision_steps", "strata", "flagged")
    }
    return replace(examples, snapshot=snapshot, **columns)


def _extended(
    old: Calibration,
    quantiles: NDArray[np.float64],
    outcome: NDArray[np.float64],
    runs: NDArray[np.int64],
    strata: list[str],
) -> Calibration:
    """Add rows of the trunks with the numbers `runs` to a calibration."""
    low, high = old.how.scores(quantiles[:, 0], quantiles[:, -1], outcome)
    return replace(
        old,
        low=np.concatenate([old.low, low]),
        high=np.concatenate([old.high, high]),
        trunks=np.concatenate([old.trunks, runs.astype(old.trunks.dtype)]),
        strata=(*old.strata, *strata),
        weights=np.concatenate([old.weights, np.ones(len(low))]),
    )
