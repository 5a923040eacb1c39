"""Examples made up for tests: from a few columns, or of trunks whose interventions do what is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from trainenv.types import DECISIONS, LOOKS
from trainenv.worldmodel.baselines.scale import squash, unsquash
from trainenv.worldmodel.examples import LEVELS, Examples, Predictions
from trainenv.worldmodel.features import ACTION, STATE

LR, RESET = ACTION.index("ln_lr"), ACTION.index("reset")
SENSITIVE = STATE.index("gradient")  # how much a state minds its learning rate


def examples(trunk: Any, snapshot: Any, kind: Any, horizon: Any, **columns: Any) -> Examples:
    """Branches with these Δ's at the horizon. What is left out is alike everywhere; every candidate has an action of its own."""
    trunk, snapshot, horizon = (
        np.asarray(trunk),
        np.asarray(snapshot),
        np.asarray(horizon, dtype=np.float64),
    )
    n, snapshots = len(trunk), int(snapshot.max()) + 1
    tried = np.isin(kind, ("single", "sequence", "every"))
    actions = np.zeros((n, DECISIONS, len(ACTION)))
    actions[:, 0, LR] = np.where(tried, -0.01 * np.arange(1, n + 1), 0.0)
    whole: dict[str, Any] = {
        "trunks": tuple(f"t{number:05d}" for number in range(int(trunk.max()) + 1)),
        "trunk": trunk,
        "snapshot": snapshot,
        "kind": np.asarray(kind, dtype=str),
        "states": np.zeros((snapshots, len(STATE))),
        "after": np.zeros((n, DECISIONS, len(STATE))),
        "actions": actions,
        "law": np.zeros((n, 3)),
        "looks": np.repeat(horizon[:, None], LOOKS, axis=1),
        "annealed": horizon,
        "final": horizon,
        "fall": np.zeros((n, DECISIONS)),
        "to_end": np.zeros(n),
        "diverged": np.full(n, -1),
        "fired": np.zeros(n, dtype=bool),
        "recovery": np.zeros(n),
        "recovered": np.ones(n, dtype=bool),
        "decision_steps": np.full(snapshots, 10),
        "strata": np.full(snapshots, "clean/random"),
        "flagged": np.zeros(snapshots, dtype=bool),
    }
    return Examples(
        **(
            whole
            | {
                name: np.asarray(column) if name != "trunks" else column
                for name, column in columns.items()
            }
        )
    )


def predictions(
    median: Any, *, hazard: Any = None, spread: float = 0.0, **columns: Any
) -> Predictions:
    """The same median for every target, with quantiles `spread` × (level − ½) about it."""
    median = np.asarray(median, dtype=np.float64)
    quantiles = median[:, None] + spread * (np.array(LEVELS) - 0.5)
    n = len(median)
    whole: dict[str, Any] = {
        "horizon": quantiles,
        "annealed": quantiles,
        "final": quantiles,
        "hazard": np.zeros((n, DECISIONS))
        if hazard is None
        else np.asarray(hazard, dtype=np.float64),
        "instability": np.zeros(n),
        "recovery": np.zeros((n, len(LEVELS))),
        "disagreement": np.zeros(n),
    }
    return Predictions(**(whole | columns))


def world(
    trunks: int, *, seed: int = 0, tried: int = 8, error: float = 0.05
) -> tuple[Examples, Any]:
    """Trunks of two snapshots where, on the scale of `scale`, Δ = 1.5·ln_lr·s + 1·(a reset) + noise, s the state's sensitivity.

    The law says −0.01·ln_lr. A branch diverges in decision 1 where the rate rises and s > 0.8. The index fires where s > 0.5;
    then it takes 4 decisions to recover, else none. Only even snapshots go on to the end.

    Returns:
        The examples, and Δ without noise, [n].
    """
    rng = np.random.default_rng(seed)
    kinds = [
        "control",
        "nudged",
        "nudged",
        "reordered",
        "reordered",
        *["single"] * (tried // 2),
        *["sequence"] * (tried - tried // 2),
    ]
    snapshots, each = 2 * trunks, len(kinds)
    states = rng.normal(size=(snapshots, len(STATE)))
    states[:, STATE.index("flagged")] = np.nan
    states[:, STATE.index("past")], states[:, STATE.index("above_best")] = 3.0, 0.02
    states[:, STATE.index("fired_recency")] = states[:, SENSITIVE] > 0.5
    states[:, STATE.index("index_most")] = 0.5 + (states[:, SENSITIVE] > 0.5)
    snapshot = np.repeat(np.arange(snapshots), each)
    kind = np.tile(kinds, snapshots)
    single, sequence = kind == "single", kind == "sequence"
    n = len(kind)
    actions = np.zeros((n, DECISIONS, len(ACTION)))
    actions[single, 0, LR] = rng.normal(0, 0.5, single.sum())
    actions[single, 0, RESET] = rng.random(single.sum()) < 0.3
    actions[sequence, :, LR] = rng.normal(0, 0.2, (sequence.sum(), DECISIONS))
    rate, sensitive = actions[:, :, LR].sum(axis=1), states[snapshot, SENSITIVE]
    effect = (
        1.5 * actions[:, :, LR].cumsum(axis=1).mean(axis=1) * sensitive + 1.0 * actions[:, 0, RESET]
    )
    noise = error * rng.normal(size=n) * (kind != "control")
    delta = unsquash(effect + noise)
    fired = sensitive > 0.5
    made = examples(
        snapshot // 2,
        snapshot,
        kind,
        delta,
        states=states,
        actions=actions,
        law=np.repeat(-0.01 * rate[:, None], 3, axis=1),
        final=np.where(snapshot % 2 == 0, 2 * delta, math.nan),
        diverged=np.where((sensitive > 0.8) & (rate > 0), 1, -1),
        fired=fired,
        recovery=np.where(fired, 4.0, 0.0),
        recovered=~fired,
        strata=np.array(
            [f"{'clean' if number % 4 < 2 else 'faulty'}/random" for number in range(snapshots)]
        ),
    )
    return made, unsquash(effect)


def quiet(made: Examples) -> Examples:
    """The same where every feature that does not matter is the same everywhere: little data will do to learn from."""
    states = np.where(
        np.arange(len(STATE)) == SENSITIVE,
        made.states,
        np.where(np.isnan(made.states), np.nan, 0.0),
    )
    return replace(made, states=states)


__all__ = ["examples", "predictions", "quiet", "squash", "world"]
