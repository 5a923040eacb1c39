"""Keep learning from what was really tried, without forgetting what was known (Liu et al.

2023's online speculative decoding).

    online = OnlineModel(worldmodel.load_pretrained(), rehearsal)
    online.learn([Rollout(run="mine", history=history, interventions=(…,), annealed=-0.012)])
    online.model.forecast(history, interventions)

Every rollout is first forecast with the model as it is, and only then learned: what its error says
of intervals is honest. So scores join the calibrations at once, and the level of each target's
intervals follows the misses (ACI, `conformal.adaptive`). Networks are refreshed after every
`refresh` rollouts, always from the pretrained ones, on all rollouts kept and as many branches of
the pretraining data: going on from the last refresh would drift, going back does not, and costs the
same few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.types import Rollout, UserError
from trainenv.worldmodel import features
from trainenv.worldmodel.calibration import ALPHA, Calibrations, strata_of, units
from trainenv.worldmodel.conformal import AdaptiveLevel, Calibration
from trainenv.worldmodel.examples import LOOKS, TARGETS, Examples
from trainenv.worldmodel.features import DECISIONS, STATE
from trainenv.worldmodel.law_prior import prior
from trainenv.worldmodel.model import Model, action_features
from trainenv.worldmodel.training import Training, fit

_MEASURED = ("states", "actions", "law", "looks", "annealed", "final")
_NEW = "online/"  # prefix of the names of runs learned from, beside those of the pretraining data


@dataclass(frozen=True, kw_only=True)
class Online:
    """How to go on learning.

    Args:
        refresh: rollouts between refreshes of the networks.
        keep: rollouts kept, the newest.
        training: of a refresh.
        level: rule by which the intervals' level follows late labels.

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
    """A model that learns.

    Args:
        pretrained: where it starts; it is never changed.
        rehearsal: branches of the pretraining data (`files.load_rehearsal`).
        how: hyperparameters.

    Attributes:
        model: the newest; a new object after each change.
        flops: spent on refreshing the networks so far.
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
        self._runs: dict[str, int] = {}  # those learned from, in the order they were first seen
        self._waiting = 0
        self._levels = {target: self.how.level.init() for target in TARGETS}
        self.model = self._pretrained

    def learn(self, rollouts: Sequence[Rollout], /) -> None:
        """Take in rollouts, in the order they were measured."""
        if rollouts:
            columns = read(rollouts)
            self._learned.append(columns)
            self.learn_examples(examples_of(columns))

    def price(self, rollouts: int) -> float:
        """FLOPs that `learn` takes of so many rollouts, at most."""
        if self._waiting + rollouts < self.how.refresh:
            return 0.0
        kept = min(self.how.keep, rollouts + (0 if self._kept is None else len(self._kept)))
        return self._refreshing(max(2 * len(self._rehearsal), len(self._rehearsal) + 4 * kept))

    def _refreshing(self, examples: int) -> float:
        """FLOPs of fitting the networks to so many."""
        weights = sum(p.numel() for p in self._pretrained.networks.parameters())
        return 6.0 * DECISIONS * weights * examples * self.how.training.epochs

    def state_dict(self) -> dict[str, Any]:
        """What `learn` took in, as JSON values: learned again, it comes to the same."""
        return {"learned": self._learned}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Know what another had learned from rollouts, and nothing else."""
        flops = self.flops
        self._start()
        for columns in state["learned"]:
            self._learned.append(dict(columns))
            self.learn_examples(examples_of(columns))
        self.flops = flops  # learning it again was not the run's

    def learn_examples(self, fresh: Examples) -> None:
        """The same for branches of a data set; names of trunks tell runs apart."""
        fresh = replace(
            fresh, trunks=tuple(f"{_NEW}{name.removeprefix(_NEW)}" for name in fresh.trunks)
        )
        if self.model.calibrations is not None:
            self.model = Model(
                self.model.networks,
                self._recalibrated(self.model.calibrations, fresh),
                self.model.card,
            )
        kept = fresh if self._kept is None else concatenated([self._kept, fresh])
        self._kept = _used(kept.where(np.arange(len(kept))[-self.how.keep :]))
        self._waiting += len(fresh)
        if self._waiting >= self.how.refresh:
            self._refresh()

    def report(self) -> dict[str, dict[str, float]]:
        """By target, what late labels have shown of the intervals; see `AdaptiveLevel.report`."""
        return {target: self.how.level.report(state) for target, state in self._levels.items()}

    def _refresh(self) -> None:
        """New networks from the pretrained ones, on the rollouts kept and as much of the old data."""
        assert self._kept is not None
        self._waiting = 0
        old = self._rehearsal
        times = max(
            1, round(len(old) / len(self._kept))
        )  # new and old weigh alike, but no rollout more than it did at first
        both = concatenated([old, *[self._kept] * min(times, 4)])
        networks = fit(both, self.how.training, start=self._pretrained.networks)
        self.flops += self._refreshing(len(both))
        self.model = Model(networks, self.model.calibrations, self.model.card)

    def _recalibrated(self, calibrations: Calibrations, fresh: Examples) -> Calibrations:
        """With the scores of rollouts that were not learned from yet, and the level moved by their misses."""
        some = fresh.where(fresh.candidate)
        if not len(some):
            return calibrations
        raw = self.model.raw(some)
        strata = strata_of(some.states[some.snapshot], some.actions[..., 0].sum(axis=1))
        said = calibrations.apply(raw, strata)
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
            intervals[target] = _joined(
                intervals[target], quantiles, units(outcome[known]), codes, list(strata[known])
            )
            bounds = getattr(said, target)[known]
            missed = (outcome[known] < bounds[:, 0]) | (outcome[known] > bounds[:, -1])
            for run in np.unique(runs):
                self._move_level(target, str(run), missed[runs == run])
            alpha[target] = self.how.level.level(self._levels[target])
        return replace(calibrations, intervals=intervals, alpha=alpha)

    def _move_level(self, target: str, run: str, missed: NDArray[np.bool_]) -> None:
        """By the labels of one run that came together.

        They share its fate, so together they weigh as one.
        """
        state = self._levels[target]
        rule = replace(self.how.level, gamma=self.how.level.gamma / len(missed))
        tickets = [rule.issue(state, run=run)[0] for _ in missed]
        rule.learn(state, dict(zip(tickets, missed.tolist(), strict=True)))


def as_examples(rollouts: Sequence[Rollout]) -> Examples:
    """Rollouts as branches of a data set; what they did not measure is NaN."""
    return examples_of(read(rollouts))


def read(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What is learned from rollouts, as JSON values: a list a column, with an entry a rollout."""
    columns: dict[str, list[Any]] = {}
    for rollout in rollouts:
        telemetry, now = features.read(rollout.history)
        actions = action_features([rollout.interventions])  # [1, 4, A]
        row = {
            "run": rollout.run,
            "states": features.state(telemetry, now).tolist(),
            "actions": actions[0].tolist(),
            "law": prior(telemetry, now, actions[..., 0])[0].tolist(),
            "looks": [*rollout.looks, *[math.nan] * (LOOKS - len(rollout.looks))],
            "annealed": rollout.annealed,
            "final": rollout.final,
            "diverged": rollout.diverged,
            "fired": rollout.fired,
            "decision_steps": now.decision,
            "flagged": rollout.history.flagged_ahead > 0,
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def examples_of(columns: Mapping[str, Any]) -> Examples:
    """Columns as `read` gives them, as branches of a data set; null counts as NaN, and so does what rollouts never measure."""
    count = len(columns["run"])
    runs = sorted(set(columns["run"]))
    given = {
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
        **given,
    )


def concatenated(parts: Sequence[Examples]) -> Examples:
    """Examples one after the other; trunks of the same name are one."""
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
    """The same without the snapshots that no branch is of any more: memory would grow with all that was ever seen."""
    used, snapshot = np.unique(examples.snapshot, return_inverse=True)
    columns = {
        name: getattr(examples, name)[used]
        for name in ("states", "decision_steps", "strata", "flagged")
    }
    return replace(examples, snapshot=snapshot, **columns)


def _joined(
    old: Calibration,
    quantiles: NDArray[np.float64],
    outcome: NDArray[np.float64],
    runs: NDArray[np.int64],
    strata: list[str],
) -> Calibration:
    """A calibration with more rows, of the trunks that `runs` numbers."""
    low, high = old.how.scores(quantiles[:, 0], quantiles[:, -1], outcome)
    return replace(
        old,
        low=np.concatenate([old.low, low]),
        high=np.concatenate([old.high, high]),
        trunks=np.concatenate([old.trunks, runs.astype(old.trunks.dtype)]),
        strata=(*old.strata, *strata),
        weights=np.concatenate([old.weights, np.ones(len(low))]),
    )
