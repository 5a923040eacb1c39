"""Timeline of a run in words: its incidents and the changes that were made, in order of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainenv.records.faults import each_once
from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.run.event_words import describe_event
from trainenv.report.run.incident_words import details, seen
from trainenv.report.run.incidents import Incident, incidents_of
from trainenv.report.run.run_record import RunRecord
from trainenv.report.run.verdict_words import verdict_words

MOST = 60  # most entries that are shown, those with incidents first
_LISTED = 8  # most changes of the rate that are listed one by one

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the timeline.

    Attributes:
        first: First step.
        last: Last step.
        kind: `incident`, `change` or `end`.
        title: Words for it, short.
        text: Sentences about it.
    """

    first: int
    last: int
    kind: str
    title: str
    text: str

    @property
    def steps(self) -> str:
        """The steps of the entry in words."""
        if self.first == self.last:
            return f"step {formatting.whole(self.first)}"
        return f"steps {formatting.whole(self.first)}–{formatting.whole(self.last)}"


@dataclass(frozen=True, kw_only=True)
class Story:
    """Incidents and changes of a run.

    Attributes:
        incidents: Incidents, in order of their first step.
        entries: All entries of the timeline, in that order too.
        planned: Changes of the learning rate that a plan put in force without a trial, and that
            no rollback has undone.
        rules: Descriptions of other changes that were put in force without a trial.
    """

    incidents: Sequence[Incident]
    entries: Sequence[Entry]
    planned: int
    rules: Sequence[str]

    @classmethod
    def of(cls, record: RunRecord) -> Story:
        """Put the events and decisions of a run together."""
        events = each_once(record.events)
        incidents = incidents_of(record, events)
        told = {id(event) for incident in incidents for event in incident.events}
        answered = {one["number"] for incident in incidents for one in incident.decisions}
        entries = [_of_incident(incident) for incident in incidents]
        undone = _undone(events)
        entries += _changes([event for event in events if id(event) not in told], undone)
        entries += [_of_decision(d) for d in record.decisions if d["number"] not in answered]
        if record.summary is not None:
            entries.append(_end(record))
        return cls(
            incidents=incidents,
            entries=sorted(entries, key=lambda entry: (entry.first, entry.last)),
            planned=sum(_is_planned(event) and id(event) not in undone for event in events),
            rules=[_rule(event) for event in events if _is_rule(event)],
        )


def timeline(entries: Sequence[Entry]) -> str:
    """Draw the timeline as a list."""
    shown = list(entries)
    more = ""
    if len(shown) > MOST:
        ranked = sorted(shown, key=lambda entry: (entry.kind != "incident", -entry.first))
        kept = {id(entry) for entry in ranked[:MOST]}
        shown = [entry for entry in shown if id(entry) in kept]
        left = formatting.counted(len(entries) - MOST, "more entry", "more entries")
        more = element("p", f"{left} among the events below.", class_="quiet")
    rows = [
        element(
            "li",
            element("span", escaped(entry.steps), class_="when"),
            element("div", element("b", escaped(entry.title)), " ", escaped(entry.text)),
            class_=entry.kind,
        )
        for entry in shown
    ]
    return element("ol", *rows, class_="timeline") + more


def _of_incident(incident: Incident) -> Entry:
    return Entry(
        first=incident.first,
        last=incident.last,
        kind="incident",
        title=formatting.sentence(seen(incident)),
        text=details(incident),
    )


def _of_decision(decision: Mapping[str, Any]) -> Entry:
    step = int(decision["step"])
    return Entry(
        first=step,
        last=max(step, int(decision.get("at") or step)),
        kind="change",
        title=f"Decision {decision['number']}.",
        text=formatting.sentence(f"{formatting.trigger(decision)}; {verdict_words(decision)}"),
    )


def _is_planned(event: Event) -> bool:
    plan = (event.get("detail") or {}).get("plan")
    return event["kind"] == "intervention" and isinstance(plan, Mapping)


def _is_rule(event: Event) -> bool:
    detail = event.get("detail") or {}
    free = not (detail.get("plan") or detail.get("pending"))
    return event["kind"] == "intervention" and free


def _rule(event: Event) -> str:
    name = formatting.intervention(event["detail"])
    return f"{name} from step {formatting.whole(event['step'])} on"


def _undone(events: Sequence[Event]) -> set[int]:
    """Return the ids of the interventions that a later rollback has undone."""
    found: set[int] = set()
    so_far: list[Event] = []
    for event in events:
        if event["kind"] == "rewind":
            to = formatting.finite((event.get("detail") or {}).get("to"))
            lost = [one for one in so_far if to is not None and one["step"] > to]
            found |= {id(one) for one in lost}
            so_far = [one for one in so_far if id(one) not in found]
        elif event["kind"] == "intervention":
            so_far.append(event)
    return found


def _changes(events: Sequence[Event], undone: set[int]) -> list[Entry]:
    """Return the entries for changes and faults that belong to no incident.

    What plans put in force bit by bit in one direction is one movement of the rate.

    Args:
        events: Events that belong to no incident.
        undone: Ids of the interventions that a rollback has undone.
    """
    entries: list[Entry] = []
    group: list[Event] = []
    for event in events:
        if _is_planned(event):
            if group and _raises(group[-1]) != _raises(event):
                entries += _grouped(group, undone)
                group = []
            group.append(event)
        elif event["kind"] in ("intervention", "fault", "gave_up", "interrupted", "rewind"):
            step = int(event["step"])
            words = formatting.sentence(describe_event(event))
            if _is_rule(event):
                words = formatting.sentence(_rule(event))
            entries.append(Entry(first=step, last=step, kind="change", title=words, text=""))
    return [*entries, *_grouped(group, undone)]


def _factor(event: Event) -> float:
    return formatting.finite(event["detail"].get("lr_scale")) or 1.0


def _raises(event: Event) -> bool:
    return _factor(event) >= 1


def _grouped(group: Sequence[Event], undone: set[int]) -> list[Entry]:
    """Return one entry for changes of the rate by plans; none for no change."""
    if not group:
        return []
    factors = [_factor(event) for event in group]
    total = math.prod(factor for factor, event in zip(factors, group) if id(event) not in undone)
    word = "raised" if total >= 1 else "lowered"
    text = "by plans to the end of the run, without a trial because each step is small"
    if len(group) == 1:
        text = "by a plan to the end of the run, without a trial because the step is small"
    if group[-1]["step"] == 0:
        text = "by a plan before the first step, when nothing can be lost yet"
    if len(group) > 1:
        parts = [
            f"×{factor:.3g} at {formatting.whole(event['step'])}"
            + (" (undone by the rollback)" if id(event) in undone else "")
            for factor, event in zip(factors[:_LISTED], group)
        ]
        if len(group) > _LISTED:
            parts.append("…")
        text += f": {', '.join(parts)}"
    forecasts = [formatting.change(event["detail"]["plan"].get("forecast")) for event in group]
    text += f". Forecast for the final loss: {forecasts[0]}"
    if len(set(forecasts)) > 1:
        text += f" at first, {forecasts[-1]} at the last change"
    return [
        Entry(
            first=int(group[0]["step"]),
            last=int(group[-1]["step"]),
            kind="change",
            title=f"Learning rate {word} to ×{total:.3g} of what it was,",
            text=f"{text}.",
        )
    ]


def _end(record: RunRecord) -> Entry:
    ended = str((record.summary or {}).get("ended") or "ended")
    step = record.last_step
    return Entry(first=step, last=step, kind="end", title="End.", text=formatting.sentence(ended))
