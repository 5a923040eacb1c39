"""What an intervention did: the log loss of a branch less that of the do-nothing control beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from trainenv.worldmodel.dataset.dataset import Dataset

MEASURES = ("horizon", "annealed", "final")


def effects(data: Dataset) -> pd.DataFrame:
    """Δ ln loss of every branch but the controls, below 0 where it was better than doing nothing.

    A loss counts as at most the design's cap, `divergence` × a uniform guess's, and a lost run's as
    the cap: nothing is dropped.

    Returns:
        The columns trunk, snapshot, branch, kind, replica, and one a measure: at the *horizon*,
        *annealed*, and *final* (NaN where the branches of the snapshot did not go on so far).
    """
    branches = data.branches
    uniform = data.trunks.set_index("trunk")["uniform_loss"]
    cap = data.design.divergence * branches["trunk"].map(uniform)
    going_on = data.snapshots.set_index(["trunk", "snapshot"])["continued"]
    keys = branches.set_index(["trunk", "snapshot"]).index
    losses = branches[["trunk", "snapshot", "branch", "kind", "replica"]].copy()
    losses["horizon"] = [row[-1] for row in branches["validation"]]
    losses["annealed"], losses["final"] = branches["annealed"], branches["final"]
    for measure in MEASURES:
        losses[measure] = np.log(np.minimum(losses[measure].astype(float).fillna(np.inf), cap))
    losses.loc[~going_on.loc[keys].to_numpy(dtype=bool), "final"] = np.nan
    control = losses[losses["kind"] == "control"].set_index(["trunk", "snapshot"])[list(MEASURES)]
    losses[list(MEASURES)] = losses[list(MEASURES)].to_numpy() - control.loc[keys].to_numpy()
    kept: pd.DataFrame = losses[losses["kind"] != "control"].reset_index(drop=True)
    return kept
