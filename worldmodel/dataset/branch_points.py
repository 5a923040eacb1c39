"""Train a trunk, and take snapshots of it where branches are to start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from trainenv.rollouts.group import InTurn
from trainenv.types import Snapshot, Telemetry
from trainenv.worldmodel.dataset.contract import Run
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.faults import train
from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.dataset.trunks import Trunk

Origin = Literal["random", "after_fault", "fired", "rewound"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
_WATCH = 4  # steps between two checks of the index


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a trunk where branches start.

    Attributes:
        step: Optimizer steps completed.
        origin: Reason for the point: a *random* step; just *after_fault*; just after the index
            *fired*; *rewound* to before it fired, with the data known that the monitor has flagged
            since.
        event: Step of the fault or of the firing; −1 for a random point.
        level: Lowest clean validation loss of the trunk up to here, nats per token.
        validation: Clean validation loss here, nats per token.
        flagged: Data indices known to be harmful.
        snapshot: State of the run.
    """

    step: int
    origin: Origin
    event: int
    level: float
    validation: float
    flagged: tuple[int, ...]
    snapshot: Snapshot = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained trunk.

    Attributes:
        telemetry: Telemetry of each step.
        validations: (step, validation loss in nats per token), at each decision and each point.
        points: Points where branches start, in the order of their steps.
        diverged_at: First step with a non-finite loss, or a validation loss above the cap; −1 if
            there is none.
        fingerprint: Fingerprint of the run at its end.
    """

    telemetry: list[Telemetry]
    validations: list[tuple[int, float]]
    points: list[Point]
    diverged_at: int
    fingerprint: str


def train_trunk(run: Run, trunk: Trunk, design: Design) -> Trained:
    """Train a fresh run to the end of its budget, or until its weights are non-finite.

    Points lie where a whole branch fits before the end of the budget. Afterwards the run is in the
    state at the end of the trunk.
    """
    lengths = design.lengths(trunk.steps)
    last = trunk.steps - lengths.horizon  # a whole branch fits after it
    planned = _planned(trunk, design, last)
    grid = {*range(0, trunk.steps, lengths.decision), trunk.steps}
    log = _Log(run, cap=design.divergence * run.uniform_loss)
    behind: list[Point] = []  # the run at the last two decisions, to rewind to
    fired_left = design.fired
    rewound_left = design.rewound
    for stop in sorted(grid | planned.keys() | set(range(0, trunk.steps, _WATCH))):
        firings = log.train(stop - run.step, trunk)
        if stop in planned:
            log.points.append(log.point(*planned[stop]))
        if firings and rewound_left and behind and behind[0].step <= last:
            rewound_left -= 1
            log.points.append(replace(behind[0], event=firings[0], flagged=run.flagged))
        if firings and fired_left and stop <= last:
            fired_left -= 1
            log.points.append(log.point("fired", firings[0]))
        if stop in grid:
            if not math.isfinite(log.validate()):
                break  # the weights are non-finite: there is nothing more to learn
            if rewound_left and stop < trunk.steps:
                behind = [*behind[-1:], log.point("rewound", -1)]
            else:
                behind = []
    points = sorted(log.points, key=lambda point: (point.step, ORIGINS.index(point.origin)))
    return Trained(
        telemetry=log.telemetry,
        validations=sorted(log.validations.items()),
        points=points,
        diverged_at=log.diverged_at,
        fingerprint=run.fingerprint(),
    )


class _Log:
    """Notes taken while a trunk is trained."""

    def __init__(self, run: Run, *, cap: float) -> None:
        self._run = run
        self._alone = InTurn([run])
        self._cap = cap
        self.telemetry: list[Telemetry] = []
        self.validations: dict[int, float] = {}
        self.points: list[Point] = []
        self.diverged_at = -1

    def train(self, steps: int, trunk: Trunk) -> list[int]:
        """Train some steps; return those at which the index has fired."""
        (fresh,) = train(self._alone, steps, trunk.faults)
        self.telemetry += fresh
        if lost := [t.step for t in fresh if not math.isfinite(t.loss)]:
            self._diverged(lost[0])
        return [t.step for t in fresh if t.reading.fired]

    def validate(self) -> float:
        """Return the validation loss here; it is measured once."""
        step = self._run.step
        if step not in self.validations:
            self.validations[step] = self._run.evaluate()
            # A fresh model may be slightly worse than a uniform guess.
            if step and not self.validations[step] < self._cap:
                self._diverged(step)
        return self.validations[step]

    def point(self, origin: Origin, event: int) -> Point:
        """Return the run in its present state as a point."""
        validation = self.validate()
        finite = (loss for loss in self.validations.values() if math.isfinite(loss))
        level = min(finite, default=validation)
        return Point(
            step=self._run.step,
            origin=origin,
            event=event,
            level=level,
            validation=validation,
            flagged=self._run.flagged,
            snapshot=self._run.snapshot(),
        )

    def _diverged(self, step: int) -> None:
        if self.diverged_at < 0:
            self.diverged_at = step


def _planned(trunk: Trunk, design: Design, last: int) -> dict[int, tuple[Origin, int]]:
    """Return the steps of the points that are known in advance.

    There is a random one in each of equal intervals of progress, and some just after faults.
    """
    rng = stream(trunk.seed, "points")
    first = trunk.warmup
    width = max(0, last - first) / max(1, design.random)
    planned: dict[int, tuple[Origin, int]] = {
        first + int((place + rng.random()) * width): ("random", -1)
        for place in range(design.random)
        if first <= last
    }
    chosen = rng.permutation(len(trunk.faults))[: design.after_faults]
    decision = design.lengths(trunk.steps).decision
    for fault in sorted((trunk.faults[int(place)] for place in chosen), key=lambda fault: fault.at):
        # A fault acts on the step after `at`: at least one step must have seen it.
        step = fault.end + 1 + int(rng.integers(decision))
        if step <= last:
            planned[step] = ("after_fault", fault.at)
    return planned
