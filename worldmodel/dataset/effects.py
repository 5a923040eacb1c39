"""Effects of interventions: log loss of a branch less that of its do-nothing control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from trainenv.worldmodel.dataset.dataset import Dataset

MEASURES = ("horizon", "annealed", "final")


def effects(data: Dataset) -> pd.DataFrame:
    """Return Δ ln loss of each branch against its control; below 0 it was better.

    Losses are capped at the design's `divergence` × the loss of a uniform guess. A non-finite loss
    counts as the cap, so no branch is dropped.

    Returns:
        A data frame without the controls, with the columns trunk, snapshot, branch, kind, replica,
        and a column for each measure: at the *horizon*, *annealed*, and *final* (NaN if the
        branches of the snapshot did not run to the end).
    """
    branches = data.branches
    uniform = data.trunks.set_index("trunk")["uniform_loss"]
    cap = data.design.divergence * branches["trunk"].map(uniform)
    continued = data.snapshots.set_index(["trunk", "snapshot"])["continued"]
    keys = branches.set_index(["trunk", "snapshot"]).index
    losses = branches[["trunk", "snapshot", "branch", "kind", "replica"]].copy()
    losses["horizon"] = [row[-1] for row in branches["validation"]]
    losses["annealed"] = branches["annealed"]
    losses["final"] = branches["final"]
    for measure in MEASURES:
        losses[measure] = np.log(np.minimum(losses[measure].astype(float).fillna(np.inf), cap))
    losses.loc[~continued.loc[keys].to_numpy(dtype=bool), "final"] = np.nan
    control = losses[losses["kind"] == "control"].set_index(["trunk", "snapshot"])[list(MEASURES)]
    losses[list(MEASURES)] = losses[list(MEASURES)].to_numpy() - control.loc[keys].to_numpy()
    kept: pd.DataFrame = losses[losses["kind"] != "control"].reset_index(drop=True)
    return kept
