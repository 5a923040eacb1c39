"""The contract of an experiment tracker: four calls, and the values that they carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting
from trainenv.report.run.decision_card import outcome
from trainenv.report.run.verdict_words import NO_REASON
from trainenv.types import Telemetry

TAGS = {
    "loss": "loss/training",
    "lr": "learning_rate",
    "grad_norm": "gradient/norm",
    "grad_norm_clipped": "gradient/clipped_norm",
}
READINGS = {
    "index": "uncertainty/index",
    "volatility": "uncertainty/volatility",
    "entropy": "uncertainty/entropy",
    "disagreement": "uncertainty/disagreement",
}
VALIDATION = {"validation": "loss/validation", "full_validation": "loss/full_validation"}
DECISION_COLUMNS = ("number", "step", "trigger", "result", "accepted", "reason")
MEGA = 1e6  # FLOPs; the whole numbers of an axis of compute count millions of them


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A run as a tracker meets it.

    Attributes:
        name: Name of the run.
        folder: Folder of its records.
        config: Configuration, as JSON values, without addresses that are secret.
        step: Step that it starts from; above 0 if it is resumed.
        remembered: Values that the same tracker has stored for this run before.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    step: int
    remembered: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Numbers of one step.

    Attributes:
        step: Number of completed steps of the kept history. After a rollback it falls.
        line: Line of the lineage.
        flops: FLOPs of all purposes so far.
        values: Finite numbers by tag.
    """

    step: int
    line: int
    flops: float
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BranchRun:
    """A trained branch of a decision.

    Attributes:
        name: Name of decision and branch: “decision 3: LR ×0.8”.
        decision: Number of the decision.
        place: Place of the branch in it; 0 is the control.
        fate: Result: control, accepted, passed, rejected, stopped or failed.
        start: Step that the branch starts from.
        losses: Training loss of each of its steps; None for one that is not finite.
    """

    name: str
    decision: int
    place: int
    fate: str
    start: int
    losses: Sequence[float | None]

    @property
    def points(self) -> list[tuple[int, float]]:
        """Step and loss of each step whose loss is finite."""
        return [(self.start + 1 + n, x) for n, x in enumerate(self.losses) if x is not None]


class Tracker(Protocol):
    """Receiver of a run in the form of an experiment tracker.

    All calls come from one thread that is not the one that trains. An error ends the tracker and
    is reported in one sentence; the run continues.

        start(run)
        ┌─► steps(steps)           after each block
        └── event(record)          alarms, rollbacks, validation losses (kind `validation`) and
                                   decisions, which have their whole record under `decision`
        finish(summary, report)
    """

    def start(self, run: RunStart, /) -> Mapping[str, str]:
        """Open the run, and return what is needed to continue it after a resume."""
        ...

    def steps(self, steps: Sequence[Step], /) -> None:
        """Take in trained steps, in order."""
        ...

    def event(self, record: Mapping[str, Any], /) -> None:
        """Take in an event."""
        ...

    def finish(self, summary: Mapping[str, Any] | None, report: Path | None, /) -> None:
        """Close the run, with its report. Both are None if an error has ended the training."""
        ...


def values_of(telemetry: Telemetry) -> dict[str, float]:
    """Return the finite numbers of a step, by tag."""
    found = {tag: getattr(telemetry, name) for name, tag in TAGS.items()}
    found |= {tag: getattr(telemetry.reading, name) for name, tag in READINGS.items()}
    found |= {f"objective/{name}": value for name, value in telemetry.objective.items()}
    return {tag: float(value) for tag, value in found.items() if math.isfinite(value)}


def decision_row(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a decision as a row of a table, with the names of `DECISION_COLUMNS`."""
    return {
        "number": int(decision["number"]),
        "step": int(decision["step"]),
        "trigger": formatting.trigger(decision),
        "result": outcome(decision),
        "accepted": accepted_branch(decision) is not None,
        "reason": formatting.sentence(decision.get("reason") or NO_REASON),
    }


def branches_of(decision: Mapping[str, Any]) -> list[BranchRun]:
    """Return the branches of a decision that were trained."""
    number = int(decision["number"])
    found = []
    for name, branch in zip(formatting.branches(decision), decision["branches"]):
        losses = branch.get("losses")
        if isinstance(losses, list) and losses:
            found.append(
                BranchRun(
                    name=f"decision {number}: {name}",
                    decision=number,
                    place=int(branch.get("place") or 0),
                    fate=str(branch.get("fate")),
                    start=int(decision["step"]),
                    losses=[formatting.finite(loss) for loss in losses],
                )
            )
    return found
