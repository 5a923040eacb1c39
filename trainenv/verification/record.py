"""The record of a decision, `branches/{step}/decision.json`.

It has what was planned, measured and accepted, and why. Its schema is
`configs/decision_schema.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

from trainenv.records.decision_files import NAME
from trainenv.tools.atomic_files import write_json
from trainenv.types import Branch, Forecast, Intervention, Paired, Plan, UserError, Verdict
from trainenv.verification.rules import name_of
from trainenv.verification.verify import Verification

SCHEMA = 1
FOLDER = "branches"


def changes(intervention: Intervention) -> dict[str, Any]:
    """Return the fields of an intervention that differ from doing nothing."""
    ours = asdict(intervention)
    still = asdict(Intervention())
    return {name: value for name, value in ours.items() if value != still[name]}


def interventions_of(listed: Sequence[Mapping[str, Any]]) -> tuple[Intervention, ...]:
    """Return the sequence of interventions that `changes` describes."""
    try:
        return tuple(Intervention(**one) for one in listed)
    except TypeError as error:
        raise UserError(
            f"expected interventions with the fields of Intervention, "
            f"found {list(listed)!r:.150} ({error})"
        ) from None


def record_of(
    verdict: Verdict,
    plan: Plan,
    verification: Verification,
    *,
    control: Literal["trained", "recorded"] = "trained",
) -> dict[str, Any]:
    """Return the part of a record that describes the plan and its verification.

    The caller adds the step, the start and the cause of the decision.

    Args:
        verdict: Result of the verification.
        plan: Ranked candidates.
        verification: Settings of the verification.
        control: Origin of the control: trained with the branches, or recorded by the run itself.
    """
    return {
        "planner": {
            "name": plan.planner,
            "candidates": len(plan.candidates),
            "dropped": len(plan.dropped),
            "faults": list(plan.faults),
            "complete": plan.complete,
            "futures": plan.cost.futures,
            "seconds": plan.cost.seconds,
        },
        "verification": {
            "rule": name_of(verification.rule),
            "settings": settings(verification.rule),
            "top_k": verification.top_k,
            "verify_steps": verdict.steps,
            "cooldown": verification.cooldown,
            "stopping": settings(verification.stopping),
            "fold": verification.fold,
            "workers": verification.workers,
            "width": verification.width,
            "control": control,
        },
        "branches": [_branch(place, branch) for place, branch in enumerate(verdict.branches)],
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "cost": {
            "steps": verdict.cost.steps,
            "flops": verdict.cost.flops,
            "wasted_flops": verdict.wasted,
        },
    }


def _branch(place: int, branch: Branch) -> dict[str, Any]:
    """Return the JSON values of a branch; place 0 is the control."""
    return {
        "place": place,
        "control": place == 0,
        "interventions": [changes(one) for one in branch.interventions],
        "score": branch.score,
        "forecast": _fields(branch.forecast),
        "expected": _interval(branch.expected),
        "outcome": asdict(branch.outcome),
        "losses": list(branch.losses),
        "delta": branch.delta,
        "annealed_delta": branch.annealed_delta,
        "paired": _fields(branch.paired),
        "fate": branch.fate,
        "reason": branch.reason,
    }


def _fields(value: Forecast | Paired | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return asdict(value)


def _interval(expected: tuple[float, float, float] | None) -> dict[str, float] | None:
    if expected is None:
        return None
    return dict(zip(("low", "median", "high"), expected, strict=True))


def settings(value: Any) -> Any:
    """Return the fields of a dataclass as JSON values, None for None, `repr` for anything else."""
    if value is None:
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return repr(value)


def folder_of(run_folder: Path, step: int, number: int) -> Path:
    """Return the folder that a decision is recorded in.

    It is `branches/STEP`, or the first free one of `branches/STEP-2`, `branches/STEP-3`, … A folder
    without a whole record, or with a record of this number or a later one, is free: it was left by
    a run that was killed and resumed from an earlier checkpoint.

    Args:
        run_folder: Folder of the run.
        step: Step of the run at the decision.
        number: Number of the decision in the run.
    """
    place = 1
    name = str(step)
    while True:
        path = run_folder / FOLDER / name
        try:
            found = int(json.loads((path / NAME).read_text(encoding="utf-8"))["number"])
        except (OSError, ValueError, KeyError, TypeError):
            return path
        if found >= number:
            return path
        place += 1
        name = f"{step}-{place}"


def write(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write a record to a folder, whole or not at all, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    write_json(path, {"schema": SCHEMA, **record})
    return path
