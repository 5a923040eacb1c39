"""Training examples of a world model: the states and actions of branches, and their outcomes.

    examples = Examples.of(Dataset.open("branches"))
    train = examples.among(parts["train"])
    test = examples.among(parts["test"])

Every Δ is a difference of ln losses: the clean validation loss of a branch against that of the
do-nothing control of the same snapshot, on the same batches. Losses above the data set's cap count
as the cap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainenv.types import CLIP_NAMES, DECISIONS
from trainenv.worldmodel.dataset import Dataset, Trunk
from trainenv.worldmodel.dataset.dataset import CLIPS
from trainenv.worldmodel.dataset.run_histories import rates_ahead, scheduled
from trainenv.worldmodel.features import (
    ACTION,
    COLUMNS,
    GROUPS,
    STATE,
    Columns,
    Context,
    state,
)
from trainenv.worldmodel.law_prior import prior

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Levels of the forecast quantiles."""
TARGETS = ("horizon", "annealed", "final")
CANDIDATES = ("single", "sequence", "every")
"""Kinds of branches that try an intervention; branches of other kinds are controls."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """n branches of S snapshots, which were taken from T trunks (runs).

    F = len(STATE), A = len(ACTION); a decision is a quarter of the horizon.

    Attributes:
        trunks: [T] names of the trunks.
        trunk: [n] index in `trunks` of each branch's trunk.
        snapshot: [n] row in `states` of each branch's snapshot.
        kind: [n] kinds: `control`, `nudged`, `reordered`, `single`, `sequence` or `every`.
        states: [S, F] features of the snapshots; NaN where not measured.
        after: [n, 4, F] features after each decision of the branch; all NaN after a non-finite
            loss.
        actions: [n, 4, A] action features of each decision; 0 where nothing was done.
        law: [n, 3] Δ ln loss by the anchored multi-power law: horizon, annealed, final.
        looks: [n, 8] Δ ln loss after each eighth of the horizon; the last is the target `horizon`.
        annealed: [n] Δ ln loss after the reference cool-down.
        final: [n] Δ ln loss at the end of the run; NaN where the branches of the snapshot were not
            trained until then.
        fall: [n, 4] fall of the branch's own ln loss over each decision: the rewards of a search.
        to_end: [n] fall of ln loss from the horizon to the end of the run; NaN where `final` is.
        diverged: [n] decision in which the branch diverged, 0 to 3; −1 if it did not.
        fired: [n] True where the uncertainty index fired within the horizon.
        recovery: [n] decisions until the loss was back at its best so far, 0 to 4; NaN where not
            watched.
        recovered: [n] False where the loss had not recovered by then: the time is right-censored.
        decision_steps: [S] steps of a decision.
        strata: [S] setting of the trunk and origin of the snapshot, for instance "faulty/fired".
        flagged: [S] True where flagged data was still to come.
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
        """[n] True where the branch tried an intervention."""
        return np.isin(self.kind, CANDIDATES)

    def where(self, rows: NDArray[Any]) -> Examples:
        """Return the branches at `rows` (mask or indices); snapshots and trunks are all kept."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _BY_BRANCH})

    def among(self, trunks: Collection[str]) -> Examples:
        """Return the branches of these trunks."""
        wanted = np.array([name in set(trunks) for name in self.trunks])
        return self.where(wanted[self.trunk])

    def without(self, group: str) -> Examples:
        """Return examples without a group of `features.GROUPS`, or without the "law"."""
        if group == "law":
            return replace(self, law=np.zeros_like(self.law))
        places = [STATE.index(name) for name in GROUPS[group]]
        states = self.states.copy()
        states[:, places] = math.nan
        return replace(self, states=states)

    def shuffled(self, rng: np.random.Generator) -> Examples:
        """Return examples with actions permuted among the candidates of each snapshot.

        So actions carry no information about the outcomes.
        """
        actions = self.actions.copy()
        law = self.law.copy()
        for snapshot in np.unique(self.snapshot):
            rows = np.flatnonzero((self.snapshot == snapshot) & self.candidate)
            sources = rng.permutation(rows)
            actions[rows] = self.actions[sources]
            law[rows] = self.law[sources]
        return replace(self, actions=actions, law=law)

    @classmethod
    def of(cls, data: Dataset) -> Examples:
        """Build the examples of a data set; a large one takes some minutes."""
        arrays = data.arrays()
        branches = data.branches
        cap = data.design.divergence * data.trunks["uniform_loss"].to_numpy()[arrays.trunk]
        losses = _losses(data, cap)
        states = np.full((len(data.snapshots), len(STATE)), math.nan)
        after = np.full((len(branches), DECISIONS, len(STATE)), math.nan)
        law = np.zeros((len(branches), len(TARGETS)))
        actions = _actions(arrays.actions)
        for place, name in enumerate(data.trunks["trunk"]):
            rows = np.flatnonzero(arrays.trunk == place)
            for one in _snapshots(data, str(name), rows, arrays):
                states[one.snapshot] = one.state
                law[one.rows] = one.law
                after[one.rows] = one.after
        trunk_of = data.trunks.set_index("trunk").loc[data.snapshots["trunk"]]  # of each snapshot
        decision = trunk_of["decision"].to_numpy()
        settings = trunk_of["setting"].to_numpy(dtype=str)
        steps_in = branches["diverged_at"].to_numpy(dtype=np.int64)
        decision_of = decision[arrays.snapshot]  # of each branch
        diverged = np.minimum(np.maximum(steps_in - 1, 0) // decision_of, DECISIONS - 1)
        return cls(
            trunks=tuple(str(name) for name in data.trunks["trunk"]),
            trunk=arrays.trunk,
            snapshot=arrays.snapshot,
            kind=branches["kind"].to_numpy(dtype=str),
            states=states,
            after=after,
            actions=actions,
            law=law,
            **losses,
            diverged=np.where(steps_in >= 0, diverged, -1),
            fired=np.array([len(steps) > 0 for steps in branches["fired"]], dtype=np.bool_),
            recovery=arrays.recovery / decision_of,
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
    """Forecasts for n branches. Quantiles are at `LEVELS` and rise.

    Attributes:
        horizon, annealed, final: [n, 5] quantiles of Δ ln loss; 0 for a control.
        hazard: [n, 4] probability of diverging in each decision, if not before.
        instability: [n] probability that the uncertainty index fires within the horizon.
        recovery: [n, 5] quantiles of the decisions until recovered; 4 means 4 or more.
        disagreement: [n] standard deviation of the median of `annealed` over the ensemble, in nats;
            0 for a single model.
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
        """Return the forecasts for the branches at `rows` (mask or indices)."""
        return Predictions(
            **{field.name: getattr(self, field.name)[rows] for field in fields(self)}
        )


def _losses(data: Dataset, cap: Floats) -> dict[str, Floats]:
    """Return the columns of `Examples` that come from losses."""
    arrays = data.arrays()
    validation = _capped_logs(arrays.validation, cap[:, None])  # [n, 9]
    annealed = _capped_logs(arrays.annealed, cap)
    continued = data.snapshots["continued"].to_numpy(dtype=bool)[arrays.snapshot]
    final = np.where(continued, _capped_logs(arrays.final, cap), math.nan)
    control_of = np.zeros(len(data.snapshots), dtype=np.int64)
    is_control = data.branches["kind"].to_numpy() == "control"
    control_of[arrays.snapshot[is_control]] = np.flatnonzero(is_control)
    control = control_of[arrays.snapshot]
    per_decision = validation[:, ::2]  # [n, 5]
    return {
        "looks": validation[:, 1:] - validation[control, 1:],
        "annealed": annealed - annealed[control],
        "final": final - final[control],
        "fall": per_decision[:, :-1] - per_decision[:, 1:],
        "to_end": validation[:, -1] - final,
    }


def _capped_logs(losses: Floats, cap: Floats) -> Floats:
    """Return ln losses of at most the cap; a non-finite loss counts as the cap."""
    logs: Floats = np.log(np.minimum(np.nan_to_num(losses, nan=np.inf), cap))
    return logs


def _actions(raw: Floats) -> Floats:
    """Return action features [n, 4, A] of the data set's actions [n, 4, 6]."""
    clip = raw[..., 2:3] == np.array([CLIPS.index(name) for name in CLIP_NAMES])
    found: Floats = np.concatenate([raw[..., :2], clip, raw[..., 3:]], axis=-1)
    assert found.shape[-1] == len(ACTION)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Snapshot:
    """Features of a snapshot and of its b branches.

    Attributes:
        snapshot: Row in the table of snapshots.
        rows: [b] rows of its branches.
        state: [F] features.
        law: [b, 3] Δ ln loss by the law.
        after: [b, 4, F] features after each decision.
    """

    snapshot: int
    rows: Ints
    state: Floats
    law: Floats
    after: Floats


def _snapshots(data: Dataset, name: str, rows: Ints, arrays: Any) -> Iterator[_Snapshot]:
    """Yield the snapshots of a trunk whose branches are `rows`."""
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

        def context(columns: Columns, at: int, validation: float, flagged: int) -> Context:
            last = {key: float(column[-1]) for key, column in columns.items()}
            return Context(
                lrs_ahead=rates_ahead(planned, at, last, recipe.reset_warmup),
                base_lr=float(record["lr"]),
                uniform_loss=float(record["uniform_loss"]),
                decision=decision,
                rows=decision,
                validation=validation,
                flagged_ahead=flagged,
                done=at,
            )

        branches = rows[arrays.snapshot[rows] == snapshot]
        here = context(behind, step, float(row["validation"]), int(row["flagged_ahead"]))
        after = np.full((len(branches), DECISIONS, len(STATE)), math.nan)
        for place, branch in enumerate(branches):
            number = int(data.branches["branch"].iloc[branch])
            trained = pieces.get((int(row["snapshot"]), number))
            if trained is None:
                continue
            for count in range(1, DECISIONS + 1):
                known = trained["step"] <= step + count * decision
                loss = arrays.validation[branch, 2 * count]
                if (
                    known.sum() < count * decision
                    or not np.isfinite(trained["loss"][known]).all()
                    or not math.isfinite(loss)
                ):
                    break
                whole = {key: np.concatenate([behind[key], trained[key][known]]) for key in behind}
                there = context(whole, step + count * decision, float(loss), 0)
                after[place, count - 1] = state(whole, there)
        yield _Snapshot(
            snapshot=int(snapshot),
            rows=branches,
            state=state(behind, here),
            law=prior(behind, here, arrays.actions[branches, :, 0]),
            after=after,
        )


def _columns(steps: pd.DataFrame) -> Columns:
    columns = {name: steps[name].to_numpy(dtype=np.float64) for name in COLUMNS}
    codes: Mapping[str, int] = {name: place for place, name in enumerate(CLIP_NAMES)}
    columns["clip"] = steps["clip"].map(codes).to_numpy(dtype=np.float64)
    return columns
