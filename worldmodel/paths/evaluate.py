"""Evaluation of a path model on groups that it has not seen: error, regret of its picks, coverage.

At a decision, the model picks one of the paths that the runs of a group took. The regret of the
pick is its final loss less that of the best run of the group, in ln. After the first decision the
runs of a group differ in their past too, so that the pick is one of a path with its past.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainenv.worldmodel.paths.inputs import Floats
from trainenv.worldmodel.paths.network import LEVELS, Ensemble
from trainenv.worldmodel.paths.table import PathTable

SHARES = (0.04, 0.2, 0.5, 0.75)
"""Shares of the run at which the regret of picks is measured."""
_CHUNK = 8192  # examples evaluated at a time
_FEWEST = 4  # runs of a group that make a choice


@torch.inference_mode()
def predict(ensemble: Ensemble, table: PathTable, *, blind: bool = False) -> Floats:
    """Return mean and quantiles of the change of ln loss for each example [n, 1 + Q].

    Args:
        ensemble: Fitted ensemble.
        table: Examples.
        blind: Flag: nothing of the run is shown.
    """
    parts = [np.zeros((0, 1 + len(LEVELS)))]
    for start in range(0, len(table), _CHUNK):
        inputs = torch.from_numpy(table.inputs[start : start + _CHUNK].astype(np.float32))
        hidden = torch.full((len(inputs),), blind)
        parts.append(ensemble(inputs, hidden).mean(0).double().numpy())
    return np.concatenate(parts)


def evaluate(
    found: Floats, blind: Floats, table: PathTable, decisions: int, width: float
) -> dict[str, Any]:
    """Return the measures of predictions for a table, as JSON values.

    Args:
        found: Mean and quantiles of each example [n, 1 + Q], from models without its group.
        blind: The same of models that are shown nothing of the run.
        table: Examples.
        decisions: Number of decisions of a run.
        width: Factor on the width of the intervals.
    """
    begun = table.decision > 0
    error = np.abs(found[:, 0] - table.change)
    blind_error = np.abs(blind[:, 0] - table.change)
    return {
        "examples": len(table),
        "groups": len(np.unique(table.group)),
        "error": float(error[begun].mean()),
        "error_blind": float(blind_error[begun].mean()),
        "error_start": float(error[~begun].mean()),
        "explained": float(1 - (error[begun] ** 2).mean() / table.change[begun].var()),
        "coverage": coverage(found[begun], table.where(begun), width),
        "regret": [
            {
                "decision": d,
                **regret(found[:, 0], table, d),
                "blind": regret(blind[:, 0], table, d)["pick"],
            }
            for d in (max(1, round(share * decisions)) for share in SHARES)
        ],
    }


def regret(values: Floats, table: PathTable, decision: int) -> dict[str, Any]:
    """Return the mean regret of the model's picks at a decision, and that of doing nothing.

    Args:
        values: Predicted change of ln loss of each example [n].
        table: Examples.
        decision: Number of the decision.
    """
    picks = []
    nothing = []
    here = np.flatnonzero(table.decision == decision)
    for group in np.unique(table.group[here]):
        rows = here[table.group[here] == group]
        alone = rows[table.run[rows] == 0]
        if len(rows) < _FEWEST or not len(alone):
            continue
        ends = table.end[rows]
        pick = rows[np.argmin(values[rows] + table.level[rows])]
        picks.append(table.end[pick] - ends.min())
        nothing.append(table.end[alone[0]] - ends.min())
    if not picks:
        return {"pick": None, "nothing": None, "groups": 0}
    return {
        "pick": float(np.mean(picks)),
        "nothing": float(np.mean(nothing)),
        "groups": len(picks),
    }


def coverage(found: Floats, table: PathTable, width: float) -> float:
    """Return the share of final losses inside the 90 % intervals, `width` times as wide."""
    return float(scores(found, table).__le__(width).mean())


def scores(found: Floats, table: PathTable) -> NDArray[np.float64]:
    """Return for each example the factor on its interval that just reaches the measured end."""
    quantiles = found[:, 1:]
    middle = quantiles[:, quantiles.shape[1] // 2]
    below = np.maximum(middle - quantiles[:, 0], 1e-6)
    above = np.maximum(quantiles[:, -1] - middle, 1e-6)
    off = table.change - middle
    reach: NDArray[np.float64] = np.where(off > 0, off / above, -off / below)
    return reach


def calibrated_width(found: Floats, table: PathTable, level: float = 0.9) -> float:
    """Return the factor on the intervals that covers a share of the groups' examples.

    Each group weighs the same: its examples share a future. The quantile is that of split conformal
    prediction over groups (Romano et al. 2019, CQR, with a factor in place of a margin).
    """
    reach = scores(found, table)
    groups, place = np.unique(table.group, return_inverse=True)
    weights = 1.0 / np.bincount(place)[place]
    order = np.argsort(reach)
    mass = np.cumsum(weights[order]) / (len(groups) + 1)
    at = int(np.searchsorted(mass, level))
    return float(reach[order[min(at, len(reach) - 1)]])
