"""What regressions see of a branch: the state, the actions decision by decision and summed up, the law's Δ."""

from __future__ import annotations

import numpy as np

from trainenv.types import CLIP_NAMES
from trainenv.worldmodel.baselines.scale import squash
from trainenv.worldmodel.examples import Examples, Floats
from trainenv.worldmodel.features import ACTION

_ANY = (*(f"set_{name}" for name in CLIP_NAMES), "reorder", "skip")


def states(examples: Examples) -> Floats:
    """[n, F] of the snapshot of each branch, NaN where unmeasured."""
    of: Floats = examples.states[examples.snapshot]
    return of


def decisions(examples: Examples) -> Floats:
    """[n, 4·A] the actions, decision by decision."""
    return examples.actions.reshape(len(examples), -1)


def main_actions(examples: Examples) -> Floats:
    """[n, M] actions summed up, all 0 where nothing is done.

    The learning rate's ln factor at first, at last and on average, with its cuts alone and its
    rises alone; the weight decay's at last and on average; momentum resets, at first and in all;
    each clip policy, reorder and skip, if at any decision; at which share of the decisions anything
    was done.
    """
    actions = examples.actions
    rate, decay = (
        np.cumsum(actions[:, :, ACTION.index(name)], axis=1)
        for name in ("ln_lr", "ln_weight_decay")
    )
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
    """[n, 3] the law's Δ, on the scale of `scale`."""
    return squash(examples.law)
