"""Verdicts in words: a decision's outcome with the reason that its rule had."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting

NO_REASON = "no reason was recorded"
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
    return "" if median is None else formatting.change(median)


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
    rate = _rate(branch)
    reasons = []
    if rate > 1 + _CHANGED and delta > 0:
        reasons.append("as a higher rate is at first")
    elif rate < 1 - _CHANGED and delta < 0:
        reasons.append("as a lower rate is at first")
    if forecast := _against_forecast(branch, delta):
        reasons.append(forecast)
    return " and ".join(reasons) or "which is no harm"


def _against_forecast(branch: Mapping[str, Any], delta: float) -> str:
    """Return where a measured change lies in its forecast interval; empty without a forecast."""
    expected = branch.get("expected") or {}
    low, high = (formatting.finite(expected.get(key)) for key in ("low", "high"))
    if low is None or high is None:
        return ""
    interval = formatting.interval(low, high)
    if delta < low:
        return f"better than its forecast ({interval})"
    if delta > high:
        return f"above its forecast ({interval})"
    return f"as forecast ({interval})"


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
