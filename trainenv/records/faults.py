"""Faults of a run, each named once however often it was met: for its summary, its report and its tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]  # a line of `events.jsonl`


def faults_of(events: Sequence[Record]) -> list[dict[str, Any]]:
    """The faults that events tell of, in the order they were first met.

    Args:
        events: as `trainenv.records.run_folder.read_events` returns them.

    Returns:
        For each its `reason`, the `step` that it was first met at, and how many `times` it was met.
    """
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        for reason in _reasons(event):
            fault = found.setdefault(reason, {"reason": reason, "step": event["step"], "times": 0})
            fault["times"] += 1
    return list(found.values())


def each_once(events: Iterable[Record]) -> list[dict[str, Any]]:
    """The events, with each fault named where it was first met, by an event of kind `fault`, and nowhere else.

    Decisions in a row that were skipped for one reason are one event, with the `times` in its
    detail.
    """
    events = list(events)
    shown = list[dict[str, Any]]()
    named = {fault["reason"]: fault for fault in faults_of(events)}
    skipped: dict[str, Any] | None = None  # the newest of those in a row
    lost = {_place(event) for event in events if event["kind"] == "non_finite"}
    for event in events:
        reasons = _reasons(event)
        for reason in reasons:
            if fault := named.pop(reason, None):
                shown.append({**event, "kind": "fault", "detail": fault})
        if event["kind"] == "decision":
            detail = {
                key: value for key, value in (event.get("detail") or {}).items() if key != "faults"
            }
            shown.append({**event, "detail": detail})
        elif (
            not reasons
            and event["kind"] == "skipped"
            and skipped
            and _reason(skipped) == _reason(event)
        ):
            skipped["detail"]["times"] = skipped["detail"].get("times", 1) + 1
            continue
        elif not reasons and not (
            event["kind"] == "fired" and _place(event) in lost
        ):  # an alarm about the very loss
            shown.append({**event, "detail": dict(event.get("detail") or {})})
        if shown and event["kind"] in ("skipped", "decision", "rewind"):
            skipped = shown[-1] if shown[-1]["kind"] == "skipped" else None
    return shown


def _reason(event: Record) -> Any:
    return (event.get("detail") or {}).get("reason")


def _place(event: Record) -> tuple[int, int]:
    """Line and step of an event."""
    return event.get("line", 0), event["step"]


def _reasons(event: Record) -> tuple[str, ...]:
    """The faults that an event tells of."""
    detail = event.get("detail") or {}
    if event["kind"] == "decision":
        return tuple(map(str, detail.get("faults") or ()))
    if event["kind"] == "non_finite" or (event["kind"] == "skipped" and detail.get("fault")):
        return (str(detail.get("reason") or event["kind"]),)
    return ()
