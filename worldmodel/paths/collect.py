"""Train the runs of a group side by side, and keep every decision of every run.

A row is one run: its path, its schedule, the features of its state at each decision, the clean loss
there, and the loss at its end. Run 0 of a group is left alone. All runs see the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainenv.training.history import KEPT, history_of, sparse_of, stride_of
from trainenv.types import Run, RunGroup, Telemetry
from trainenv.worldmodel import features
from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.paths.groups import Group
from trainenv.worldmodel.paths.inputs import decision_steps, read_state
from trainenv.worldmodel.paths.rate_paths import random_path

DECISIONS = 30  # of a run: the first at its start, where nothing is known yet
RUNS = 8  # of a group, the one left alone included
_LARGEST = 2.0  # cap of a final loss, in units of the loss of a uniform guess

Floats = NDArray[np.float64]
Row = dict[str, Any]


class Policy(Protocol):
    """Chooses the factor on the learning rate of some runs at a decision, when it collects data."""

    def __call__(
        self,
        states: Sequence[features.Floats],
        levels: Sequence[float],
        schedules: Sequence[Floats],
        paths: Sequence[Floats],
        usuals: Sequence[float],
        decision: int,
        rng: np.random.Generator,
        /,
    ) -> Sequence[float]:
        """Return ln factors of the learning rate from now on, one for each run.

        Args:
            states: [F] features of each run now.
            levels: ln of the clean loss of each run now.
            schedules: [D] scheduled learning rate of each run during each decision.
            paths: [D] ln factors of each run; only those before `decision` count.
            usuals: ln of the learning rate that usually suits the size of each run.
            decision: Number of the decision, from 1 on.
            rng: Source of randomness.
        """
        ...


def collect(
    group: Group,
    texts: Mapping[str, Mapping[str, Any]],
    make_run: Callable[[Mapping[str, Any]], Any],
    fold: Callable[[Sequence[Any]], RunGroup[Any]],
    policy: Policy | None = None,
) -> list[Row]:
    """Train a group and return a row for each of its runs.

    Args:
        group: Group to train.
        texts: Configuration of each text.
        make_run: Function from overrides of the configuration to a run.
        fold: Function that trains runs side by side.
        policy: Planner to collect with: half of the steered runs follow it to the end, the others
            until a random decision; None for random paths alone.
    """
    rng = stream(group.seed, "path", group.index)
    first = make_run(group.overrides(texts))
    together = fold([first, *(first.fork() for _ in range(RUNS - 1))])
    everyone = range(RUNS)
    bounds = [round(group.steps * d / DECISIONS) for d in range(DECISIONS + 1)]
    lrs = np.array(first.lrs_ahead())
    schedule = np.array([lrs[start:stop].mean() for start, stop in pairwise(bounds)])
    paths = [np.zeros(DECISIONS), *(random_path(rng, DECISIONS) for _ in range(RUNS - 1))]
    until = _followed(rng, policy is not None)
    stride = stride_of(group.steps)
    logs: list[list[Telemetry]] = [[] for _ in range(RUNS)]
    states = np.full((RUNS, DECISIONS, len(features.STATE)), np.nan)
    levels = np.full((RUNS, DECISIONS), np.nan)
    for d in range(DECISIONS):
        if d:
            for k in range(RUNS):
                states[k, d], levels[k, d] = observe(together.runs[k], logs[k], group.steps)
        steered = [k for k in range(RUNS) if 0 < d <= until[k] and math.isfinite(levels[k, d])]
        if policy is not None and steered:
            chosen = policy(
                [states[k, d] for k in steered],
                [levels[k, d] for k in steered],
                [schedule] * len(steered),
                [paths[k] for k in steered],
                [math.log(group.size.lr)] * len(steered),
                d,
                rng,
            )
            for k, factor in zip(steered, chosen):
                paths[k][d:] = factor
                if d == until[k]:
                    paths[k] = random_path(rng, DECISIONS, paths[k][: d + 1])
        for k, run in enumerate(together.runs):
            run.lr_scale = float(math.exp(paths[k][d]))
        for k, window in enumerate(together.advance(bounds[d + 1] - bounds[d], everyone)):
            logs[k] = (logs[k] + window)[-KEPT * stride :]
    cap = _LARGEST * first.uniform_loss
    ends = [min(loss, cap) if math.isfinite(loss) else cap for loss in together.evaluate(everyone)]
    return [
        {
            "group": group.index,
            "run": k,
            "followed": int(until[k]),
            "steps": group.steps,
            "path": paths[k],
            "schedule": schedule,
            "states": states[k],
            "levels": levels[k],
            "end": math.log(ends[k]),
        }
        for k in range(RUNS)
    ]


def observe(run: Run, telemetry: Sequence[Telemetry], steps: int) -> tuple[features.Floats, float]:
    """Return the features [F] of a run now, and ln of its clean loss; NaN if it has diverged."""
    nothing = np.full(len(features.STATE), np.nan)
    stride = stride_of(steps)
    sparse = sparse_of(telemetry, stride) if stride > 1 else []
    newest = [*sparse[-1:], telemetry[-1]]
    if not all(math.isfinite(one.loss) and math.isfinite(one.grad_norm) for one in newest):
        return nothing, math.nan
    if len(telemetry) < features.LEAST_STEPS:
        return nothing, math.nan
    history = history_of(
        run,
        telemetry[-KEPT:],
        horizon=decision_steps(steps),
        sparse=sparse,
        stride=stride,
    )
    return read_state(history)[:2]


def _followed(rng: np.random.Generator, planned: bool) -> NDArray[np.int64]:
    """Return for each run the last decision at which it follows the policy; 0 for none."""
    until = np.zeros(RUNS, dtype=np.int64)
    if planned:
        until[1:] = DECISIONS
        until[RUNS // 2 + 1 :] = rng.integers(2, DECISIONS - 2, RUNS - RUNS // 2 - 1)
    return until
