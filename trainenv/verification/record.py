"""`branches/{step}/decision.json`: what was drafted, measured and accepted, and why; see `configs/decision_schema.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

from trainenv.records.decision_files import NAME
from trainenv.tools.atomic_files import write_json
from trainenv.types import Branch, Intervention, Plan, UserError, Verdict
from trainenv.verification.rules import name_of
from trainenv.verification.verify import Verification

SCHEMA = 1
FOLDER = "branches"


def changes(intervention: Intervention) -> dict[str, Any]:
    """The fields that differ from doing nothing."""
    ours = asdict(intervention)
    still = asdict(Intervention())
    return {name: value for name, value in ours.items() if value != still[name]}


def interventions_of(listed: Sequence[Mapping[str, Any]]) -> tuple[Intervention, ...]:
    """The sequence that `changes` were taken of."""
    try:
        return tuple(Intervention(**one) for one in listed)
    except TypeError as error:
        raise UserError(
            f"expected interventions with the fields of Intervention, found {list(listed)!r:.150} ({error})"
        ) from None


def record_of(
    verdict: Verdict,
    plan: Plan,
    verification: Verification,
    *,
    control: Literal["trained", "recorded"] = "trained",
) -> dict[str, Any]:
    """What a record says of the draft and its verification.

    Whoever decided adds when, where and why.
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
    low, median, high = branch.expected or (math.nan,) * 3
    outcome = asdict(branch.outcome)
    return {
        "place": place,
        "control": place == 0,
        "interventions": [changes(one) for one in branch.interventions],
        "score": branch.score,
        "forecast": None if branch.forecast is None else asdict(branch.forecast),
        "expected": None
        if branch.expected is None
        else {"low": low, "median": median, "high": high},
        "outcome": outcome,
        "losses": list(branch.losses),
        "delta": branch.delta,
        "annealed_delta": branch.annealed_delta,
        "paired": None if branch.paired is None else asdict(branch.paired),
        "fate": branch.fate,
        "reason": branch.reason,
    }


def settings(value: Any) -> Any:
    """Hyperparameters of a frozen dataclass as JSON values; anything else in words."""
    return (
        asdict(value)
        if is_dataclass(value) and not isinstance(value, type)
        else None
        if value is None
        else repr(value)
    )


def folder_of(run_folder: Path, step: int, number: int) -> Path:
    """Where the decision with this number is recorded: `branches/STEP`, or the first free `branches/STEP-2`, …

    A folder that holds no whole record, or one of this number or a later one, was left behind by a
    run that was killed and has come by again: it is taken anew.
    """
    place = 1
    while True:
        path = run_folder / FOLDER / (str(step) if place == 1 else f"{step}-{place}")
        try:
            found = int(json.loads((path / NAME).read_text(encoding="utf-8"))["number"])
        except (OSError, ValueError, KeyError, TypeError):
            return path
        if found >= number:
            return path
        place += 1


def write(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write a record, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    write_json(path, {"schema": SCHEMA, **record})
    return path
