"""A decision on its way: skipped or verified; what a draft may cost; what went wrong, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainenv.config.schema import BranchingConfig
from trainenv.rollouts.executor import Rollouts
from trainenv.types import Budget, Plan, RunHistory, Telemetry, Verdict, WorldModel
from trainenv.verification.rules import make as make_rule
from trainenv.verification.verify import Verification

FEWEST = 8  # futures that a draft must be able to look at


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A decision that was not taken.

    Attributes:
        reason: for that, in words.
        fault: something has failed.
        vain: doing nothing failed too, as it would again.
    """

    reason: str
    fault: bool = False
    vain: bool = False


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Branches that were trained, judged and put on record; none is committed yet."""

    rollouts: Rollouts
    verdict: Verdict
    where: Path
    told: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Draft(Verified):
    """Those of a draft."""

    plan: Plan
    history: RunHistory


def verification_of(settings: BranchingConfig) -> Verification:
    """The verification that a configuration describes."""
    return Verification(
        top_k=settings.top_k,
        verify_steps=settings.verify_steps,
        rule=make_rule(
            settings.rule, **({"cut": settings.cut_gain} if settings.rule == "agreement" else {})
        ),
        workers=settings.workers,
        worth=settings.min_gain,
    )


def within(budget: Budget, flops: float, per_future: float) -> Budget:
    """A planner's budget, cut to FLOPs; to no future at all where hardly any could be looked at."""
    if not per_future or (budget.futures is not None and budget.futures * per_future <= flops):
        return budget
    futures = int(max(flops, 0.0) // per_future)
    return replace(budget, futures=futures if futures >= FEWEST else 0)


def per_future(model: WorldModel | None) -> float:
    """FLOPs of looking at one future; 0 without a model."""
    return float(getattr(model, "flops_per_future", 0.0))


def first_lost(history: Sequence[Telemetry], step: int) -> int:
    """The first of the steps in a row, up to the newest, whose loss is not finite; `step` where there is none."""
    for telemetry in reversed(history):
        if math.isfinite(telemetry.loss):
            break
        step = telemetry.step
    return step
