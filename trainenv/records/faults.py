"""Faults of a run, each named once however often it occurred; for summary, report and tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]  # a line of `events.jsonl`


def faults_of(events: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the faults in events, in the order of their first occurrence.

    Args:
        events: Events as `trainenv.records.run_folder.read_events` returns them.

    Returns:
        [{reason, step, times}]: the reason in words, the step of the first occurrence, and the
        number of occurrences.
    """
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        for reason in _reasons(event):
            fault = found.setdefault(reason, {"reason": reason, "step": event["step"], "times": 0})
            fault["times"] += 1
    return list(found.values())


def each_once(events: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the events with each fault as one event of kind `fault`, at its first occurrence.

    Consecutive decisions that were skipped for the same reason become one event, with the number of
    `times` in its detail.
    """
    events = list(events)
    shown = list[dict[str, Any]]()
    named = {fault["reason"]: fault for fault in faults_of(events)}
    skipped: dict[str, Any] | None = None  # newest of consecutive skips
    lost = {_place(event) for event in events if event["kind"] == "non_finite"}
    for event in events:
        reasons = _reasons(event)
        for reason in reasons:
            if fault := named.pop(reason, None):
                shown.append({**event, "kind": "fault", "detail": fault})
        if event["kind"] == "decision":
            detail = _detail(event)
            detail.pop("faults", None)
            shown.append({**event, "detail": detail})
        elif (
            not reasons
            and event["kind"] == "skipped"
            and skipped
            and _reason(skipped) == _reason(event)
        ):
            skipped["detail"]["times"] = skipped["detail"].get("times", 1) + 1
            continue
        elif not reasons and not (event["kind"] == "fired" and _place(event) in lost):
            # An alarm about a non-finite loss is left out: the loss has its own event.
            shown.append({**event, "detail": _detail(event)})
        if shown and event["kind"] in ("skipped", "decision", "rewind"):
            skipped = None
            if shown[-1]["kind"] == "skipped":
                skipped = shown[-1]
    return shown


def _detail(event: Record) -> dict[str, Any]:
    return dict(event.get("detail") or {})


def _reason(event: Record) -> Any:
    return _detail(event).get("reason")


def _place(event: Record) -> tuple[int, int]:
    """Line and step of an event."""
    return event.get("line", 0), event["step"]


def _reasons(event: Record) -> tuple[str, ...]:
    """Reasons of the faults in an event."""
    detail = _detail(event)
    if event["kind"] == "decision":
        return tuple(map(str, detail.get("faults") or ()))
    if event["kind"] == "non_finite" or (event["kind"] == "skipped" and detail.get("fault")):
        return (str(detail.get("reason") or event["kind"]),)
    return ()
