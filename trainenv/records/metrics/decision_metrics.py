"""The second family of metrics: a run's decisions, from `branches/*/decision.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trainenv.records.decision_files import read_decisions
from trainenv.tools.error_text import describe_error
from trainenv.tools.json_lines import number_or_nan

_RECENT = 8  # verified decisions that `over_time` averages over


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A branch that was trained, other than the control.

    Attributes:
        measured: Measured Δ ln loss against the control; inf if the branch diverged, NaN if it was
            stopped early or failed.
        low: Lower end of the expected interval; NaN where not known.
        median: Expected Δ ln loss; NaN where not known.
        high: Upper end of the expected interval; NaN where not known.
    """

    measured: float
    low: float
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A decision, as far as the metrics need it.

    Attributes:
        number: Number of the decision.
        at: Step of the run.
        accepted: Flag: a branch other than the control was accepted.
        tried: Trained branches, without the control.
        steps: Steps that the decision cost.
        flops: FLOPs that the decision cost.
    """

    number: int
    at: int
    accepted: bool
    tried: tuple[Tried, ...]
    steps: int
    flops: float


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """A verified decision, and the accept rate of the last few decisions up to it.

    Attributes:
        number: Number of the decision.
        at: Step of the run.
        accepted: Flag: a branch other than the control was accepted.
        rate: Share of accepted decisions among the last 8 verified ones.
    """

    number: int
    at: int
    accepted: bool
    rate: float


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """The second family of metrics; the docstring of the package defines each.

    NaN (null in JSON) where there was nothing to measure.

    Attributes:
        invoked, verified, accepted: Numbers of decisions.
        invoke_rate: Decisions per 1000 steps taken.
        accept_rate: Accepted ÷ verified decisions.
        branches: Number of verified branches.
        gap, bias, sign: Mean errors of the expected median, ln loss.
        compared: Number of branches that `gap`, `bias` and `sign` average over.
        coverage: Share of measured Δ inside the expected interval.
        covered_of: Number of branches that `coverage` averages over.
        verify_steps: Steps that decisions cost.
        verify_flops: FLOPs that decisions cost.
        verify_share: Share of these in all FLOPs.
        over_time: Accept rate at each verified decision.
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
    """Return the decisions in a run's folder, by number; None if it has no `branches`.

    Args:
        folder: Folder of the run.
        note: Function that is called with a sentence for each skipped file.
    """
    if not (folder / "branches").is_dir():
        return None
    found = []
    for record in read_decisions(folder, note):
        try:
            found.append(decided(record))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            note(f"decision {record['number']} is skipped: {describe_error(error)}")
    return found


def decided(record: Mapping[str, Any]) -> Decided:
    """Return a decision from the content of its file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: The content is no decision.
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
        flops=number_or_nan(record["cost"]["flops"]),
    )


def _was_run(branch: Mapping[str, Any]) -> bool:
    outcome = branch.get("outcome")
    return not branch["control"] and outcome is not None and outcome["steps"] > 0


def _tried(branch: Mapping[str, Any]) -> Tried:
    expected = branch.get("expected") or {}
    measured = number_or_nan(branch.get("delta"))
    if branch["outcome"]["diverged"]:
        measured = math.inf
    return Tried(
        measured=measured,
        low=number_or_nan(expected.get("low")),
        median=number_or_nan(expected.get("median")),
        high=number_or_nan(expected.get("high")),
    )


def judge(decisions: Sequence[Decided], *, steps: int, flops: float) -> Decisions:
    """Return the metrics of all decisions of a run.

    Args:
        decisions: Decisions, in order.
        steps: Steps taken by the run.
        flops: FLOPs of its whole ledger; NaN where not known.
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
        invoke_rate=share(1000 * len(decisions), steps),
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
        verify_share=share(spent, flops),
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
    if values:
        return fmean(values)
    return math.nan


def share(part: float, whole: float) -> float:
    """Return part ÷ whole; NaN if there is no whole."""
    if whole > 0:
        return part / whole
    return math.nan
