"""A data set of branches as models see it: states and actions in, what became of them out.

    examples = Examples.of(Dataset.open("branches"))
    train, test = examples.among(parts["train"]), examples.among(parts["test"])

Every Δ is the natural logarithm of a clean validation loss less that of the do-nothing control of
the same snapshot, on the same batches; a loss counts as at most the data set's cap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainenv.types import CLIP_NAMES
from trainenv.worldmodel.dataset import Dataset, Trunk
from trainenv.worldmodel.dataset.dataset import CLIPS
from trainenv.worldmodel.dataset.run_histories import rates_ahead, scheduled
from trainenv.worldmodel.features import (
    ACTION,
    COLUMNS,
    DECISIONS,
    GROUPS,
    STATE,
    Columns,
    Now,
    state,
)
from trainenv.worldmodel.law_prior import prior

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of every forecast quantile."""
TARGETS = ("horizon", "annealed", "final")
LOOKS = 8
CANDIDATES = ("single", "sequence", "every")
"""Kinds of branches that try something; the others are controls."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """n branches of S snapshots.

    F = len(STATE), A = len(ACTION); a decision is a quarter of the horizon.

    Attributes:
        trunks: [T] names of the trunks.
        trunk: [n] of each branch, its place in `trunks`.
        snapshot: [n] its row in `states`.
        kind: [n] `control`, `nudged`, `reordered`, `single`, `sequence` or `every`.
        states: [S, F] features of the snapshots, NaN where unmeasured.
        after: [n, 4, F] features after each decision of the branch; NaN throughout where it had
            been lost.
        actions: [n, 4, A] of each decision; 0 where nothing was done.
        law: [n, 3] Δ ln loss by the anchored multi-power law: horizon, annealed, final.
        looks: [n, 8] Δ ln loss after each eighth of the horizon; the last is the target `horizon`.
        annealed: [n] Δ ln loss after the reference cool-down.
        final: [n] Δ ln loss at the end of the run; NaN where the branches of the snapshot did not
            go on so far.
        fall: [n, 4] fall of ln loss over each decision of the branch itself: a search's rewards.
        to_end: [n] fall of ln loss from the horizon to the end of the run; NaN as `final`.
        diverged: [n] decision in which it diverged, 0 to 3; −1 if it did not.
        fired: [n] whether the uncertainty index fired within the horizon.
        recovery: [n] decisions until the loss was back at its best so far, 0 to 4; NaN where nobody
            watched.
        recovered: [n] False: `recovery` is as long as it was watched.
        decision_steps: [S] steps of a decision.
        strata: [S] setting of the trunk and origin of the snapshot, "faulty/fired" say.
        flagged: [S] whether flagged data was still to come.
    """

    trunks: tuple[str, ...]
    trunk: Ints
    snapshot: Ints
    kind: NDArray[np.str_]
    states: Floats
    after: Floats
    actions: Floats
    law: Floats
    looks: Floats
    annealed: Floats
    final: Floats
    fall: Floats
    to_end: Floats
    diverged: Ints
    fired: Flags
    recovery: Floats
    recovered: Flags
    decision_steps: Ints
    strata: NDArray[np.str_]
    flagged: Flags

    def __len__(self) -> int:
        return len(self.trunk)

    @property
    def horizon(self) -> Floats:
        """[n] Δ ln loss at the horizon."""
        last: Floats = self.looks[:, -1]
        return last

    @property
    def candidate(self) -> Flags:
        """[n] whether the branch tried something."""
        return np.isin(self.kind, CANDIDATES)

    def where(self, rows: NDArray[Any]) -> Examples:
        """The branches at `rows` (a mask or indices); snapshots and trunks keep their numbers."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _BY_BRANCH})

    def among(self, trunks: Collection[str]) -> Examples:
        """The branches of these trunks."""
        wanted = np.array([name in set(trunks) for name in self.trunks])
        return self.where(wanted[self.trunk])

    def without(self, group: str) -> Examples:
        """The same with a group of `features.GROUPS` unmeasured, or the `law` left out."""
        if group == "law":
            return replace(self, law=np.zeros_like(self.law))
        places = [STATE.index(name) for name in GROUPS[group]]
        states = self.states.copy()
        states[:, places] = math.nan
        return replace(self, states=states)

    def shuffled(self, rng: np.random.Generator) -> Examples:
        """The same with each snapshot's actions dealt out anew among its candidates: they say nothing of the outcomes."""
        actions = self.actions.copy()
        law = self.law.copy()
        for snapshot in np.unique(self.snapshot):
            rows = np.flatnonzero((self.snapshot == snapshot) & self.candidate)
            dealt = rng.permutation(rows)
            actions[rows], law[rows] = self.actions[dealt], self.law[dealt]
        return replace(self, actions=actions, law=law)

    @classmethod
    def of(cls, data: Dataset) -> Examples:
        """The examples of a data set; some minutes for a large one."""
        arrays = data.arrays()
        branches = data.branches
        cap = data.design.divergence * data.trunks["uniform_loss"].to_numpy()[arrays.trunk]
        falls, values = _losses(data, cap)
        states = np.full((len(data.snapshots), len(STATE)), math.nan)
        after = np.full((len(branches), DECISIONS, len(STATE)), math.nan)
        law = np.zeros((len(branches), len(TARGETS)))
        actions = _actions(arrays.actions)
        rows_of = {
            name: np.flatnonzero(arrays.trunk == row)
            for row, name in enumerate(data.trunks["trunk"])
        }
        for name, rows in rows_of.items():
            for snapshot, state_here, law_here, after_here, those in _of_trunk(
                data, str(name), rows, arrays, actions
            ):
                states[snapshot], law[those], after[those] = state_here, law_here, after_here
        decision = (
            data.trunks.set_index("trunk")["decision"].loc[data.snapshots["trunk"]].to_numpy()
        )
        steps_in = branches["diverged_at"].to_numpy(dtype=np.int64)
        within = decision[arrays.snapshot]
        settings = (
            data.trunks.set_index("trunk")["setting"]
            .loc[data.snapshots["trunk"]]
            .to_numpy(dtype=str)
        )
        return cls(
            trunks=tuple(str(name) for name in data.trunks["trunk"]),
            trunk=arrays.trunk,
            snapshot=arrays.snapshot,
            kind=branches["kind"].to_numpy(dtype=str),
            states=states,
            after=after,
            actions=actions,
            law=law,
            **values,
            **falls,
            diverged=np.where(
                steps_in >= 0, np.minimum(np.maximum(steps_in - 1, 0) // within, DECISIONS - 1), -1
            ),
            fired=np.array([len(steps) > 0 for steps in branches["fired"]], dtype=np.bool_),
            recovery=arrays.recovery / within,
            recovered=arrays.recovered,
            decision_steps=decision.astype(np.int64),
            strata=np.array([f"{a}/{b}" for a, b in zip(settings, data.snapshots["origin"])]),
            flagged=data.snapshots["flagged_ahead"].to_numpy() > 0,
        )


_BY_BRANCH = tuple(
    field.name
    for field in fields(Examples)
    if field.name not in ("trunks", "states", "decision_steps", "strata", "flagged")
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a model forecasts for n branches. Quantiles are at `LEVELS` and rise.

    Attributes:
        horizon, annealed, final: [n, 5] quantiles of Δ ln loss; for a control 0.
        hazard: [n, 4] for each decision, the probability of diverging in it if not before.
        instability: [n] probability that the index fires within the horizon.
        recovery: [n, 5] quantiles of the decisions until recovered; 4 stands for 4 or more.
        disagreement: [n] standard deviation of the median of `annealed` over an ensemble; 0 without
            one.
    """

    horizon: Floats
    annealed: Floats
    final: Floats
    hazard: Floats
    instability: Floats
    recovery: Floats
    disagreement: Floats

    @property
    def divergence(self) -> Floats:
        """[n] probability of diverging within the horizon."""
        whole: Floats = 1 - np.prod(1 - self.hazard, axis=1)
        return whole

    def where(self, rows: NDArray[Any]) -> Predictions:
        """Those of the branches at `rows`."""
        return Predictions(
            **{field.name: getattr(self, field.name)[rows] for field in fields(self)}
        )


def _losses(data: Dataset, cap: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """What the branches themselves lost, and what they lost against their controls."""
    arrays = data.arrays()
    validation = np.log(
        np.minimum(np.nan_to_num(arrays.validation, nan=np.inf), cap[:, None])
    )  # [n, 9]
    annealed = np.log(np.minimum(np.nan_to_num(arrays.annealed, nan=np.inf), cap))
    going_on = data.snapshots["continued"].to_numpy(dtype=bool)[arrays.snapshot]
    final = np.where(
        going_on, np.log(np.minimum(np.nan_to_num(arrays.final, nan=np.inf), cap)), math.nan
    )
    control = np.zeros(len(data.snapshots), dtype=np.int64)
    is_control = data.branches["kind"].to_numpy() == "control"
    control[arrays.snapshot[is_control]] = np.flatnonzero(is_control)
    beside = control[arrays.snapshot]
    looks = validation[:, 1:] - validation[beside, 1:]
    per_decision = validation[:, ::2]  # [n, 5]
    falls = {
        "fall": per_decision[:, :-1] - per_decision[:, 1:],
        "to_end": validation[:, -1] - final,
    }
    return falls, {
        "looks": looks,
        "annealed": annealed - annealed[beside],
        "final": final - final[beside],
    }


def _actions(raw: Floats) -> Floats:
    """[n, 4, A] from the data set's [n, 4, 6]: the clip policy as one flag each."""
    clip = raw[..., 2:3] == np.array([CLIPS.index(name) for name in CLIP_NAMES])
    found: Floats = np.concatenate([raw[..., :2], clip, raw[..., 3:]], axis=-1)
    assert found.shape[-1] == len(ACTION)
    return found


def _of_trunk(data: Dataset, name: str, rows: Ints, arrays: Any, actions: Floats):  # type: ignore[no-untyped-def]
    """Of each snapshot of a trunk: its row, features, the law's Δ and the features after each decision of its branches."""
    telemetry = _columns(data.trunk_steps(name))
    record: dict[Any, Any] = data.trunks[data.trunks["trunk"] == name].to_dict("records")[0]
    recipe = Trunk.from_json(json.loads(record["recipe"]))
    steps = data.branch_steps(name)
    inside = steps[steps["phase"] == "branch"]
    pieces = {
        key: _columns(part) for key, part in inside.groupby(["snapshot", "branch"], sort=False)
    }
    planned = scheduled(recipe)
    decision = int(record["decision"])
    for snapshot in np.unique(arrays.snapshot[rows]):
        row: dict[Any, Any] = data.snapshots.iloc[snapshot].to_dict()
        step = int(row["step"])
        behind = {key: column[:step] for key, column in telemetry.items()}

        def now(at: int, last: Mapping[str, float], validation: float, flagged: int) -> Now:
            return Now(
                lrs_ahead=rates_ahead(planned, at, last, recipe.reset_warmup),
                base_lr=float(record["lr"]),
                uniform_loss=float(record["uniform_loss"]),
                decision=decision,
                validation=validation,
                flagged_ahead=flagged,
                done=at,
            )

        those = rows[arrays.snapshot[rows] == snapshot]
        last = {name: float(column[-1]) for name, column in behind.items()}
        here = now(step, last, float(row["validation"]), int(row["flagged_ahead"]))
        law = prior(behind, here, arrays.actions[those, :, 0])
        after = np.full((len(those), DECISIONS, len(STATE)), math.nan)
        for place, branch in enumerate(those):
            number = int(data.branches["branch"].iloc[branch])
            played = pieces.get((int(row["snapshot"]), number))
            if played is None:
                continue
            for count in range(1, DECISIONS + 1):
                known = played["step"] <= step + count * decision
                loss = arrays.validation[branch, 2 * count]
                if (
                    known.sum() < count * decision
                    or not np.isfinite(played["loss"][known]).all()
                    or not math.isfinite(loss)
                ):
                    break
                whole = {key: np.concatenate([behind[key], played[key][known]]) for key in behind}
                last = {name: float(column[-1]) for name, column in whole.items()}
                after[place, count - 1] = state(
                    whole, now(step + count * decision, last, float(loss), 0)
                )
        yield int(snapshot), state(behind, here), law, after, those


def _columns(steps: pd.DataFrame) -> Columns:
    columns = {name: steps[name].to_numpy(dtype=np.float64) for name in COLUMNS}
    codes: Mapping[str, int] = {name: place for place, name in enumerate(CLIP_NAMES)}
    columns["clip"] = steps["clip"].map(codes).to_numpy(dtype=np.float64)
    return columns
