"""Events of a run in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.report.run.verdict_words import NO_REASON


def _alarm(detail: Mapping[str, Any]) -> str:
    """Describe an alarm; the layer is named whose gradient is the oddest."""
    index = formatting.number(detail.get("index"), 1)
    text = f"alarm: uncertainty index {index}, loss {formatting.number(detail.get('loss'))}"
    if layer := detail.get("layer"):
        text += f"; gradient norm {formatting.number(detail['layers'].get(layer))} in {layer}"
        if (ratio := formatting.finite(detail.get("layer_ratio"))) is not None:
            text += f", {formatting.number(ratio, 1)} times the usual"
    if (logit := formatting.finite(detail.get("attention_logit"))) is not None:
        block = detail.get("attention_block")
        text += f"; largest attention logit {formatting.number(logit, 1)}, in block {block}"
    return text


def describe_event(event: Mapping[str, Any]) -> str:
    """Describe an event in words."""
    detail = event.get("detail") or {}
    reason = detail.get("reason")
    match event["kind"]:
        case "fired":
            return _alarm(detail)
        case "replay":
            return f"replayed: {reason or NO_REASON}"
        case "rewind":
            return _rollback(detail)
        case "intervention":
            text = f"intervention: {formatting.intervention(detail)}"
            if detail.get("pending"):
                text += " (later part of an accepted plan)"
            if isinstance(plan := detail.get("plan"), Mapping):
                text += (
                    f" (plan to the end: {formatting.change(plan.get('forecast'))} in final loss)"
                )
            return text
        case "decision":
            outcome = "the run continued unchanged"
            if detail.get("accepted"):
                outcome = "a branch was accepted"
                reason = str(reason or "").removeprefix("accepted, ")
            return _joined(f"decision {detail.get('number')}: {outcome}", "; ", reason)
        case "skipped":
            return f"skipped decision: {reason or NO_REASON}{_often(detail)}"
        case "fault":
            return f"fault: {detail['reason']}{_often(detail)}"
        case "gave_up":
            return f"planning was given up: {reason or NO_REASON}"
    return _joined(f"{event['kind']}", ": ", reason)


def _rollback(detail: Mapping[str, Any]) -> str:
    text = f"rolled back to step {formatting.whole(detail.get('to'))}"
    scale = formatting.finite(detail.get("lr_scale"))
    if scale is not None and scale != 1:
        text += f", LR now ×{scale:.3g}"
    return text


def _joined(text: str, separator: str, reason: object) -> str:
    if not reason:
        return text
    return f"{text}{separator}{reason}"


def _often(detail: Mapping[str, Any]) -> str:
    """Write the number of times, if it is more than one."""
    if detail.get("times", 1) <= 1:
        return ""
    return f" ({detail['times']} times)"
