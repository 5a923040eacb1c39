"""Decisions, alarms and rollbacks of a run in words, and its branches as points to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from trainenv.records.decision_files import accepted_branch
from trainenv.records.faults import each_once
from trainenv.report.drawing import formatting
from trainenv.report.run.decision_card import FATES, outcome
from trainenv.report.run.event_words import describe_event
from trainenv.report.run.tree_panel import usual
from trainenv.report.run.verdict_words import NO_REASON
from trainenv.watch.run_reader import RunReader
from trainenv.watch.steps import short

DECISIONS = 200  # most decisions that are listed, the newest ones
EVENTS = 200
_CURVES = 30  # most decisions whose branches are drawn as curves of the loss
_POINTS = 16  # most points of such a curve


def story_of(reader: RunReader) -> dict[str, Any]:
    """Return decisions, events, alarms and rollbacks, the newest decisions and events first."""
    decisions = sorted(reader.decisions.values(), key=lambda one: int(one["number"]))
    events = reader.events
    return {
        "decisions": _decisions(decisions),
        "events": _events(events),
        "alarms": [event["step"] for event in events if event["kind"] == "fired"][-500:],
        "rollbacks": rollbacks(events)[-200:],
    }


def rollbacks(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return the step that each rollback led to, and the one that it started from."""
    found = []
    for event in events:
        to = (event.get("detail") or {}).get("to")
        if event["kind"] == "rewind" and isinstance(to, int):
            found.append((to, event["step"]))
    return found


def _events(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str]]:
    """Return step, kind and words of the newest events, decisions left out."""
    shown = [event for event in each_once(events) if event["kind"] != "decision"]
    found = []
    for event in reversed(shown[-EVENTS:]):
        with suppress(LookupError, TypeError, ValueError, AttributeError):
            found.append((event["step"], event["kind"], describe_event(event)))
    return found


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    across = usual(decisions)
    found = []
    for place, decision in enumerate(reversed(decisions[-DECISIONS:])):
        with suppress(LookupError, TypeError, ValueError, AttributeError):  # written by others
            found.append(_decision(decision, across, curves=place < _CURVES))
    return found


def _decision(decision: Mapping[str, Any], across: float, *, curves: bool) -> dict[str, Any]:
    names = formatting.branches(decision)
    return {
        "number": decision["number"],
        "step": decision["step"],
        "accepted": accepted_branch(decision) is not None,
        "title": _title(decision),
        "text": _text(decision),
        "branches": [
            _branch(name, branch, across, curve=curves)
            for name, branch in zip(names, decision["branches"])
        ],
    }


def _title(decision: Mapping[str, Any]) -> str:
    words = outcome(decision)
    return f"{words[:1].upper()}{words[1:]}"


def _text(decision: Mapping[str, Any]) -> str:
    """Describe the trigger and the verdict of a decision in two sentences."""
    at = decision.get("at") or decision["step"]
    text = f"At step {formatting.whole(at)} {formatting.trigger(decision)}"
    if at != decision["step"]:
        text += f"; the run went back to step {formatting.whole(decision['step'])}"
    steps = (decision.get("verification") or {}).get("verify_steps")
    count = formatting.counted(len(decision["branches"]), "branch", "branches")
    text += f". {count} of {formatting.whole(steps)} steps"
    return f"{text}. {formatting.sentence(decision.get('reason') or NO_REASON)}"


def _branch(name: str, branch: Mapping[str, Any], across: float, *, curve: bool) -> dict[str, Any]:
    """Return a branch: name, fate, change, height in the tree from -1 to 1, losses."""
    fate = str(branch.get("fate"))
    delta = formatting.finite(branch.get("delta"))
    control = bool(branch.get("control"))
    height = None
    if delta is not None and not control:
        height = round(math.tanh(0.55 * math.asinh(delta / (across or 1.0))), 3)
    found: dict[str, Any] = {
        "name": name,
        "fate": fate if fate in FATES else "rejected",
        "change": "" if control else formatting.change(delta),
        "height": height,
        "control": control,
    }
    losses = branch.get("losses")
    if curve and isinstance(losses, list) and losses:
        stride = -(-len(losses) // _POINTS)
        values = [formatting.finite(loss) for loss in losses[::stride]]
        found["stride"] = stride
        found["loss"] = short(np.array(values, np.float64))
    return found
