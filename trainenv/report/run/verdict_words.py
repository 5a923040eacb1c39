"""Verdicts in words: a decision's outcome with the reason that its rule had."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting

NO_REASON = "no reason was recorded"
_UNSEEN = 1e-8  # scores below this size are none: no model has seen the candidate
_CHANGED = 1e-9


def verdict_words(decision: Mapping[str, Any]) -> str:
    """Return the verdict of a decision: the outcome, what was measured, and the rule's reason."""
    branch = accepted_branch(decision)
    if branch is None:
        return _unchanged(decision)
    name = formatting.sequence(branch.get("interventions") or [])
    text = f"accepted: {name}: {_measured(decision, branch)}"
    if reason := _reason(decision, branch):
        text += f", {reason}"
    if forecast := forecast_for_the_end(branch):
        text += f"; forecast for the end {forecast}"
    return text


def forecast_for_the_end(branch: Mapping[str, Any]) -> str:
    """Return the forecast change of the final loss; empty if no model made one."""
    final = (branch.get("forecast") or {}).get("final") or {}
    median = formatting.finite(final.get("median"))
    if median is None:
        score = formatting.finite(branch.get("score"))
        if score is None or abs(score) < _UNSEEN or not branch.get("expected"):
            return ""
        median = score
    return formatting.change(median)


def _measured(decision: Mapping[str, Any], branch: Mapping[str, Any]) -> str:
    steps = (decision.get("verification") or {}).get("verify_steps")
    if formatting.finite(branch.get("delta")) is None:
        return "it held up, and the run left alone did not"
    return f"{formatting.change(branch.get('delta'))} after {formatting.whole(steps)} steps"


def _reason(decision: Mapping[str, Any], branch: Mapping[str, Any]) -> str:
    """Return the reason for which the rule let the measured change pass."""
    verification = decision.get("verification") or {}
    settings = verification.get("settings") or {}
    delta = formatting.finite(branch.get("delta"))
    if delta is None:
        return ""
    rule = verification.get("rule")
    if rule == "better" and formatting.finite(settings.get("margin")):
        least = formatting.change(-settings["margin"])
        return f"which is below the {least} that is required"
    if rule == "annealed":
        after = formatting.change(branch.get("annealed_delta"))
        return f"and {after} after a cool-down, which this rule asks for"
    expected = branch.get("expected") or {}
    inside = formatting.interval(expected.get("low"), expected.get("high"))
    rate = _rate(branch)
    if rate > 1 + _CHANGED and delta > 0:
        text = "as a higher rate is at first"
    elif rate < 1 - _CHANGED and delta < 0:
        text = "as a lower rate is at first"
    elif inside == formatting.MISSING:
        return "which is no harm"
    else:
        return f"as forecast ({inside})"
    if inside != formatting.MISSING:
        text += f" and as forecast ({inside})"
    return text


def _rate(branch: Mapping[str, Any]) -> float:
    """Return the factor on the learning rate at the end of a branch's interventions."""
    factors = [
        formatting.finite(one.get("lr_scale")) or 1.0 for one in branch.get("interventions") or []
    ]
    return math.prod(factors)


def _unchanged(decision: Mapping[str, Any]) -> str:
    """Return why nothing was changed, with the best of the others."""
    tried = [branch for branch in decision["branches"] if not branch.get("control")]
    text = f"unchanged: {decision.get('reason') or NO_REASON}"
    measured = [one for one in tried if formatting.finite(one.get("delta")) is not None]
    if not measured:
        return text
    best = min(measured, key=lambda one: float(one["delta"]))
    name = formatting.sequence(best.get("interventions") or [])
    text += f"; the best of {len(tried)} was {name}, {_measured(decision, best)}"
    if reason := formatting.reason(best):
        text += f": {reason}"
    return text
