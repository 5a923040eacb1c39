"""An `Executor` that looks up recorded branches instead of running them, to evaluate planners.

At some snapshots every legal intervention was tried alone, at the start of a branch (kind `every`).
A planner that may use just these interventions can be given the recorded outcomes and costs, and
its choice compared with the best one.

    tried = RecordedExecutor(data, row)
    problem = PlanningProblem(masks=tried.masks, masks_after=tried.masks_after, executor=tried, …)
    data.branches.iloc[tried.rows[plan.best.interventions[0]]]      # the branch that was chosen

Not recorded:

- losses between the evaluation points: a branch runs to the next one, and the planner pays for it;
- cool-downs before the horizon, the end of the run if branches did not run to it, and the
  volatility: NaN;
- steps beyond the horizon, and sequences of two interventions: an outcome with an error;
- other orders of the data: another draw gives the same numbers again and costs the same again, so
  asking twice gains nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.interventions import ActionCodec
from trainenv.tools.json_lines import number_or_nan
from trainenv.types import ActionSpace, Cost, Intervention, Masks, Measure, Outcome, UserError
from trainenv.worldmodel.dataset.dataset import Dataset
from trainenv.worldmodel.dataset.design import DECISIONS

KINDS = ("control", "every")
_Branch = tuple[Intervention, int]  # intervention and draw


class RecordedExecutor:
    """Recorded branches of a snapshot, as a `trainenv.types.Executor`.

    Args:
        data: Data set.
        row: Row of the snapshot in `data.snapshots`.
        codec: Action space; None for the default one.

    Attributes:
        rows: Row of each intervention in `data.branches`, doing nothing first.
        masks: Masks that allow the tried interventions only.
        horizon: Steps of a branch.
        look: Steps between two evaluation points.
        cooldown: Steps of the cool-down at the end of a branch.

    Raises:
        UserError: Not every legal intervention was tried at this snapshot.
    """

    def __init__(self, data: Dataset, row: int, codec: ActionSpace | None = None) -> None:
        snapshot: dict[Any, Any] = data.snapshots.iloc[row].to_dict()
        name = snapshot["trunk"]
        branches = data.branches
        trunk: dict[Any, Any] = data.trunks[data.trunks["trunk"] == name].to_dict("records")[0]
        here = (
            (branches["trunk"] == name)
            & (branches["snapshot"] == snapshot["snapshot"])
            & branches["kind"].isin(KINDS)
        )
        self._branches: dict[Intervention, dict[Any, Any]] = {}
        self.rows: dict[Intervention, int] = {}
        for place in np.flatnonzero(here):
            branch: dict[Any, Any] = branches.iloc[place].to_dict()
            done = _done(branch)
            self._branches[done] = branch
            self.rows[done] = int(place)
        self.masks = _masks(
            codec or ActionCodec(), list(self.rows), f"snapshot {snapshot['snapshot']} of {name}"
        )
        self.horizon = int(trunk["horizon"])
        self.look = int(trunk["look"])
        self.cooldown = int(trunk["cooldown"])
        self._rest = max(0, int(trunk["budget"]) - int(snapshot["step"]) - self.horizon)
        self._continued = bool(snapshot["continued"])
        control = self._branches[Intervention()]
        # FLOPs of a step; they are about the same in all branches of a snapshot.
        self._flops = float(control["flops_branch"]) / max(1, int(control["steps"]))
        self._ran: dict[_Branch, int] = {}
        self._cooled: set[_Branch] = set()

    def fresh(self) -> RecordedExecutor:
        """Return a copy in which nothing is paid for yet, for the next planner."""
        found = copy.copy(self)
        found._ran = {}
        found._cooled = set()
        return found

    def masks_after(self, sequence: Sequence[Intervention]) -> Masks:
        """Return masks that allow nothing after the first intervention."""
        return tuple(np.arange(len(mask)) == 0 for mask in self.masks)

    def cost(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> Cost:
        """See `Executor`. A branch that is not recorded costs nothing."""
        new = sum(sum(self._new(sequence[0], steps, measure, draw)) for sequence in sequences)
        return Cost(steps=new, flops=self._flops * new)

    def run(
        self,
        sequences: Sequence[Sequence[Intervention]],
        steps: int,
        /,
        *,
        measure: Measure,
        draw: int = 0,
    ) -> list[Outcome]:
        """See `Executor`."""
        return [self._one(sequence, steps, measure, draw) for sequence in sequences]

    def _one(
        self, sequence: Sequence[Intervention], steps: int, measure: Measure, draw: int
    ) -> Outcome:
        done = sequence[0]
        looked = self._next_look(steps)
        branch = self._branches.get(done)
        decisions = -(-steps * DECISIONS // self.horizon)
        if branch is None or not all(later.does_nothing for later in sequence[1:decisions]):
            return Outcome(error=f"this was not tried: {sequence!r:.200}")
        if looked > self.horizon:
            return Outcome(error=f"tried for {self.horizon} steps, asked for {steps}")
        new, cooling = self._new(done, steps, measure, draw)
        taken = int(branch["steps"])
        key = (done, draw)
        ran = self._ran.get(key, 0)
        if taken < self.horizon:  # the weights became non-finite: no further step was taken
            new = max(0, min(new, taken - ran))
            cooling = 0
        self._ran[key] = ran + new
        annealed = math.nan
        if measure == "annealed" and looked == self.horizon:
            self._cooled.add(key)
            annealed = number_or_nan(branch["annealed"])
        final = math.nan
        if measure == "final" and self._continued:
            final = number_or_nan(branch["final"])
        losses = [number_or_nan(loss) for loss in branch["validation"]]
        return Outcome(
            looks=tuple(range(0, looked + 1, self.look)),
            validation=tuple(losses[: 1 + looked // self.look]),
            annealed=annealed,
            final=final,
            diverged=0 <= int(branch["diverged_at"]) <= looked,
            steps=new + cooling,
            flops=self._flops * (new + cooling),
        )

    def _new(self, done: Intervention, steps: int, measure: Measure, draw: int) -> tuple[int, int]:
        """Return the steps of the branch and of its cool-down that are not paid for yet.

        They assume that the weights stay finite.
        """
        looked = self._next_look(steps)
        key = (done, draw)
        if looked > self.horizon or done not in self._branches:
            return 0, 0
        end = looked
        if measure == "final" and self._continued:
            end = self.horizon + self._rest
        cooling = 0
        if measure == "annealed" and looked == self.horizon and key not in self._cooled:
            cooling = self.cooldown
        return max(0, end - self._ran.get(key, 0)), cooling

    def _next_look(self, steps: int) -> int:
        """Return the first evaluation point at or after a number of steps."""
        return -(-steps // self.look) * self.look


def exhaustive_snapshots(data: Dataset) -> NDArray[np.int64]:
    """Return the rows in `data.snapshots` where every legal intervention was tried."""
    every = data.branches[data.branches["kind"] == "every"]
    wanted = set(zip(every["trunk"], every["snapshot"]))
    keys = zip(data.snapshots["trunk"], data.snapshots["snapshot"])
    return np.array([row for row, key in enumerate(keys) if key in wanted], dtype=np.int64)


def _done(branch: dict[Any, Any]) -> Intervention:
    """The intervention at the start of a branch."""
    if not len(branch["lr_scale"]):
        return Intervention()
    clip = str(branch["clip"][0])
    return Intervention(
        lr_scale=float(branch["lr_scale"][0]),
        weight_decay_scale=float(branch["weight_decay_scale"][0]),
        clip=None if clip == "keep" else clip,  # type: ignore[arg-type]
        momentum_reset=bool(branch["momentum_reset"][0]),
        data_reorder=bool(branch["data_reorder"][0]),
        skip_batch=bool(branch["skip_batch"][0]),
    )


def _masks(codec: ActionSpace, tried: Sequence[Intervention], where: str) -> Masks:
    vectors = {tuple(codec.encode(one).tolist()) for one in tried}
    legal = [sorted({vector[part] for vector in vectors}) for part in range(len(codec.sizes))]
    missing = len(list(product(*legal))) - len(vectors)
    if missing or len(vectors) < 2:
        raise UserError(
            f"expected every legal intervention tried at {where}, found {len(vectors)} with "
            f"{missing} combinations missing; take a row of exhaustive_snapshots(data)"
        )
    return tuple(np.isin(np.arange(size), values) for size, values in zip(codec.sizes, legal))
