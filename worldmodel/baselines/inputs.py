"""Inputs of regressions: the state, the actions by decision and in summary, and Δ by the law."""

from __future__ import annotations

import numpy as np

from trainenv.types import CLIP_NAMES
from trainenv.worldmodel.baselines.scale import squash
from trainenv.worldmodel.examples import Examples, Floats
from trainenv.worldmodel.features import ACTION

_ANY = (*(f"set_{name}" for name in CLIP_NAMES), "reorder", "skip")


def states(examples: Examples) -> Floats:
    """Return the states of the branches' snapshots, [n, F]; NaN means not measured."""
    found: Floats = examples.states[examples.snapshot]
    return found


def decisions(examples: Examples) -> Floats:
    """Return the actions by decision, [n, 4·A]."""
    return examples.actions.reshape(len(examples), -1)


def main_actions(examples: Examples) -> Floats:
    """Return summaries of the actions, [n, M]; all 0 where nothing is done.

    - ln of the factor on the learning rate: first, last, mean, mean of cuts, mean of rises
    - ln of the factor on the weight decay: last, mean
    - momentum resets: at the first decision, number in all
    - each clip policy, reorder and skip: 1 if at any decision
    - share of the decisions at which anything was done
    """
    actions = examples.actions
    rate = np.cumsum(actions[:, :, ACTION.index("ln_lr")], axis=1)
    decay = np.cumsum(actions[:, :, ACTION.index("ln_weight_decay")], axis=1)
    reset = actions[:, :, ACTION.index("reset")]
    columns = [
        rate[:, 0], rate[:, -1], rate.mean(axis=1),
        np.minimum(rate, 0).mean(axis=1), np.maximum(rate, 0).mean(axis=1),
        decay[:, -1], decay.mean(axis=1),
        reset[:, 0], reset.sum(axis=1),
        *(actions[:, :, ACTION.index(name)].any(axis=1) for name in _ANY),
        actions.any(axis=2).mean(axis=1),
    ]  # fmt: skip
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def law(examples: Examples) -> Floats:
    """Return Δ by the law on the scale of `scale`, [n, 3]."""
    return squash(examples.law)
