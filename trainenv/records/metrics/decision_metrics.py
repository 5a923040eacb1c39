"""What a run's decisions say, taken together: `branches/*/decision.json` → the second family of metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trainenv.records.decision_files import read_decisions

_RECENT = 8  # verified decisions that acceptance over time looks back over


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A branch beside the control that was really run: measured and expected Δ ln loss against it; NaN where not known.

    A branch that diverged has a measured Δ of inf; one that was stopped early or failed has none.
    """

    measured: float
    low: float
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What the metrics need of one decision."""

    number: int
    at: int
    accepted: bool
    tried: tuple[Tried, ...]
    steps: int
    flops: float


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """A verified decision, and the share that was accepted of the last few up to it."""

    number: int
    at: int
    accepted: bool
    rate: float


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """The second family, see the package for each definition.

    NaN (null in JSON) where nothing was there to measure.

    Attributes:
        invoked, verified, accepted: counts of decisions.
        invoke_rate: decisions per 1000 steps taken.
        accept_rate: accepted ÷ verified.
        branches: verified branches.
        gap, bias, sign: of measured Δ against the expected median, over `compared` branches, ln
            loss.
        coverage: over `covered_of` branches.
        verify_steps, verify_flops, verify_share: what decisions cost; the share of all FLOPs.
        over_time: a point a verified decision.
    """

    invoked: int
    verified: int
    accepted: int
    invoke_rate: float
    accept_rate: float
    branches: int
    gap: float
    bias: float
    sign: float
    compared: int
    coverage: float
    covered_of: int
    verify_steps: int
    verify_flops: float
    verify_share: float
    over_time: tuple[Acceptance, ...]


def decisions_of(folder: Path, note: Callable[[str], None]) -> list[Decided] | None:
    """The decisions in a run's folder, by number; None where it has no `branches`.

    What is none is noted and passed over.
    """
    if not (folder / "branches").is_dir():
        return None
    found = []
    for record in read_decisions(folder, note):
        try:
            found.append(decided(record))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            note(
                f"decision {record['number']} is passed over: {type(error).__name__}: {error}"[:200]
            )
    return found


def decided(record: Mapping[str, Any]) -> Decided:
    """A decision from its file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: it is none.
    """
    if record["schema"] != 1:
        raise ValueError(f"expected schema 1, found {record['schema']!r}")
    branches = {branch["place"]: branch for branch in record["branches"]}
    place = record["accepted"]
    tried = [_tried(branch) for branch in branches.values() if _was_run(branch)]
    return Decided(
        number=int(record["number"]),
        at=int(record["at"]),
        accepted=place is not None and not branches[place]["control"],
        tried=tuple(tried),
        steps=int(record["cost"]["steps"]),
        flops=_number(record["cost"]["flops"]),
    )


def _was_run(branch: Mapping[str, Any]) -> bool:
    outcome = branch.get("outcome")
    return not branch["control"] and outcome is not None and outcome["steps"] > 0


def _tried(branch: Mapping[str, Any]) -> Tried:
    expected = branch.get("expected") or {}
    return Tried(
        measured=math.inf if branch["outcome"]["diverged"] else _number(branch.get("delta")),
        low=_number(expected.get("low")),
        median=_number(expected.get("median")),
        high=_number(expected.get("high")),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def judge(decisions: Sequence[Decided], *, steps: int, flops: float) -> Decisions:
    """All decisions of a run together.

    Args:
        decisions: in order.
        steps: taken by the run.
        flops: of its whole ledger; NaN where not known.
    """
    verified = [decision for decision in decisions if decision.tried]
    tried = [branch for decision in verified for branch in decision.tried]
    gaps = [
        branch.measured - branch.median
        for branch in tried
        if math.isfinite(branch.measured - branch.median)
    ]
    bounded = [
        branch for branch in tried if not math.isnan(branch.measured + branch.low + branch.high)
    ]
    spent = sum(decision.flops for decision in decisions if math.isfinite(decision.flops))
    return Decisions(
        invoked=len(decisions),
        verified=len(verified),
        accepted=sum(decision.accepted for decision in verified),
        invoke_rate=_share(1000 * len(decisions), steps),
        accept_rate=_mean([decision.accepted for decision in verified]),
        branches=len(tried),
        gap=_mean([abs(gap) for gap in gaps]),
        bias=_mean(gaps),
        sign=_mean([(gap > 0) - (gap < 0) for gap in gaps]),
        compared=len(gaps),
        coverage=_mean([branch.low <= branch.measured <= branch.high for branch in bounded]),
        covered_of=len(bounded),
        verify_steps=sum(decision.steps for decision in decisions),
        verify_flops=spent,
        verify_share=_share(spent, flops),
        over_time=_over_time(verified),
    )


def _over_time(verified: Sequence[Decided]) -> tuple[Acceptance, ...]:
    accepted = [decision.accepted for decision in verified]
    rates = [_mean(accepted[max(0, end - _RECENT) : end]) for end in range(1, len(accepted) + 1)]
    return tuple(
        Acceptance(number=decision.number, at=decision.at, accepted=decision.accepted, rate=rate)
        for decision, rate in zip(verified, rates)
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
