"""Futures that were run when a data set was made, looked up instead of run again: an `Executor` to judge planners with.

At some snapshots every legal intervention was tried, each by itself and then nothing more (branches
of the kind `every`). There a planner that is offered just these can be told what it would have
measured, at what it would have cost, and its choice be compared with the best that there was.

    tried = RecordedExecutor(data, row)
    problem = PlanningProblem(masks=tried.masks, masks_after=tried.masks_after, executor=tried, …)
    data.branches.iloc[tried.rows[plan.best.interventions[0]]]      # what became of the choice

What is not on record: looks between those after each eighth of the horizon (a branch goes on to the
next one and pays for it), cool-downs from elsewhere than the horizon (NaN), the end of the run
where branches did not go on so far (NaN), the volatility (NaN), steps beyond the horizon and
sequences of two interventions (an outcome with an error), other orders of the data: another draw
gives the numbers of the first again and is paid for again, so that nothing is gained by asking
twice.
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
from trainenv.types import ActionSpace, Cost, Intervention, Masks, Measure, Outcome, UserError
from trainenv.worldmodel.dataset.dataset import Dataset
from trainenv.worldmodel.dataset.design import DECISIONS

KINDS = ("control", "every")
_Branch = tuple[Intervention, int]  # what was done, and the draw


class RecordedExecutor:
    """What was tried at a snapshot, as a `trainenv.types.Executor`.

    Args:
        data: the data set.
        row: of the snapshot in `data.snapshots`.
        codec: the action space.

    Attributes:
        rows: of each intervention the row in `data.branches`, doing nothing first.
        masks: they allow what was tried and nothing else.
        horizon, look, cooldown: steps of a branch, from one look to the next, and of the cool-down
            at its end.

    Raises:
        UserError: not every legal intervention was tried at this snapshot.
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
            self._branches[_done(branch)], self.rows[_done(branch)] = branch, int(place)
        self.masks = _masks(
            codec or ActionCodec(), list(self.rows), f"snapshot {snapshot['snapshot']} of {name}"
        )
        self.horizon = int(trunk["horizon"])
        self.look = int(trunk["look"])
        self.cooldown = int(trunk["cooldown"])
        self._rest = max(0, int(trunk["budget"]) - int(snapshot["step"]) - self.horizon)
        self._continued = bool(snapshot["continued"])
        control = self._branches[Intervention()]
        # Of a step; all branches of a snapshot take about the same.
        self._flops = float(control["flops_branch"]) / max(1, int(control["steps"]))
        self._ran: dict[_Branch, int] = {}
        self._cooled: set[_Branch] = set()

    def fresh(self) -> RecordedExecutor:
        """The same with nothing paid for yet: for the next planner."""
        found = copy.copy(self)
        found._ran = {}
        found._cooled = set()
        return found

    def masks_after(self, sequence: Sequence[Intervention]) -> Masks:
        """After the first intervention nothing more was done."""
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
        """See `Executor`. What turns out not to be on record costs nothing."""
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
        looked = self._looked(steps)
        branch = self._branches.get(done)
        decisions = -(-steps * DECISIONS // self.horizon)
        if branch is None or not all(later.does_nothing for later in sequence[1:decisions]):
            return Outcome(error=f"this was not tried: {sequence!r:.200}")
        if looked > self.horizon:
            return Outcome(error=f"tried for {self.horizon} steps, asked for {steps}")
        on, cooling = self._new(done, steps, measure, draw)
        lost = int(branch["steps"])
        ran = self._ran.get((done, draw), 0)
        key = (done, draw)
        if lost < self.horizon:  # the weights were lost there: no step after it was taken
            on = max(0, min(on, lost - ran))
            cooling = 0
        self._ran[key] = ran + on
        if measure == "annealed" and looked == self.horizon:
            self._cooled.add(key)
        count = looked // self.look
        losses = [_number(loss) for loss in branch["validation"]]
        return Outcome(
            looks=tuple(range(0, looked + 1, self.look)),
            validation=tuple(losses[: count + 1]),
            annealed=_number(branch["annealed"])
            if measure == "annealed" and looked == self.horizon
            else math.nan,
            final=_number(branch["final"]) if measure == "final" and self._continued else math.nan,
            diverged=0 <= int(branch["diverged_at"]) <= looked,
            steps=on + cooling,
            flops=self._flops * (on + cooling),
        )

    def _new(self, done: Intervention, steps: int, measure: Measure, draw: int) -> tuple[int, int]:
        """Steps of the branch itself that were not paid for before, and those of its cool-down; where it is not lost."""
        looked = self._looked(steps)
        key = (done, draw)
        if looked > self.horizon or done not in self._branches:
            return 0, 0
        end = self.horizon + self._rest if measure == "final" and self._continued else looked
        cools = measure == "annealed" and looked == self.horizon and key not in self._cooled
        return max(0, end - self._ran.get(key, 0)), self.cooldown if cools else 0

    def _looked(self, steps: int) -> int:
        """The steps to the next look."""
        return -(-steps // self.look) * self.look


def exhaustive_snapshots(data: Dataset) -> NDArray[np.int64]:
    """The rows in `data.snapshots` of the snapshots at which every legal intervention was tried."""
    every = data.branches[data.branches["kind"] == "every"]
    wanted = set(zip(every["trunk"], every["snapshot"]))
    keys = zip(data.snapshots["trunk"], data.snapshots["snapshot"])
    return np.array([row for row, key in enumerate(keys) if key in wanted], dtype=np.int64)


def _done(branch: dict[Any, Any]) -> Intervention:
    """The intervention at the start of a branch."""
    clip = str(branch["clip"][0]) if len(branch["clip"]) else "keep"
    if not len(branch["lr_scale"]):
        return Intervention()
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
            f"expected every legal intervention tried at {where}, found {len(vectors)} with {missing} combinations missing; "
            "take a row of exhaustive_snapshots(data)"
        )
    return tuple(np.isin(np.arange(size), values) for size, values in zip(codec.sizes, legal))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
