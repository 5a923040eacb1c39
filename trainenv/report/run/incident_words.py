"""Incidents in words: what was seen, the likely cause, what was done, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.report.run.event_words import describe_event
from trainenv.report.run.incidents import Incident
from trainenv.report.run.verdict_words import verdict_words

PLANTED = {
    "random_tokens": "corrupt data",
    "lr_spike": "a spike of the learning rate",
    "lost_moments": "lost moments of the optimizer",
    "rare_tokens": "rare tokens",
    "long_sequence": "very long sequences",
    "artefacts": "broken characters",
    "block_shuffle": "shuffled data",
}
_NOTHING = "nothing was changed"


def seen(incident: Incident) -> str:
    """Return what was seen in an incident, as a clause."""
    if incident.diverged:
        return "the run diverged"
    if not incident.finite:
        return "the loss was not finite"
    if incident.peak is not None:
        before = formatting.number(incident.before, 2)
        return f"the loss rose from {before} to {formatting.number(incident.peak, 2)}"
    if incident.alarms:
        alarms = formatting.counted(incident.alarms, "alarm")
        return f"{alarms}, while the training loss stayed at its level"
    return "harm on the clean probe, while the training loss stayed at its level"


def cause(incident: Incident) -> str:
    """Return what was planted there, in words; empty where nothing was."""
    return " and ".join(PLANTED.get(name, name) for name in incident.planted)


def done(incident: Incident) -> str:
    """Return what was done in an incident, as a clause."""
    parts = []
    for event in incident.events:
        detail = event.get("detail") or {}
        if event["kind"] == "rewind":
            at = formatting.whole(event["step"])
            parts.append(f"rolled back from step {at} to {formatting.whole(detail.get('to'))}")
        elif event["kind"] == "intervention" and not detail.get("pending"):
            parts.append(formatting.intervention(detail))
        elif event["kind"] in ("gave_up", "replay"):
            parts.append(describe_event(event))
    parts += [
        f"decision {decision['number']} {verdict_words(decision)}"
        for decision in incident.decisions
    ]
    return "; ".join(parts) or _skipped(incident) or _NOTHING


def end(incident: Incident) -> str:
    """Return how an incident ended, as a clause."""
    if incident.diverged:
        return "the run ended there"
    if incident.undone is not None:
        first, last = (formatting.whole(step) for step in incident.undone)
        text = f"steps {first}–{last} were undone"
        if incident.rose and incident.over is not None:
            again = formatting.whole(incident.over)
            text += f", on the new way back at its earlier level at step {again}"
        elif incident.rose:
            text += ", not back at its earlier level yet"
        return text
    if incident.over is not None and incident.rose:
        return f"back at its earlier level at step {formatting.whole(incident.over)}"
    if not incident.rose:
        return "no harm to the training loss was seen"
    return "not back at its earlier level yet"


def details(incident: Incident) -> str:
    """Return sentences on cause, first alarm, answer and end of an incident."""
    sentences = []
    if planted := cause(incident):
        sentences.append(f"planted there: {planted}")
    alarms = [event for event in incident.events if event["kind"] == "fired"]
    if alarms:
        text = f"first seen at step {formatting.whole(alarms[0]['step'])}: "
        text += describe_event(alarms[0])
        if len(alarms) > 1:
            text += f", then {formatting.counted(len(alarms) - 1, 'more alarm')}"
        sentences.append(text)
    elif incident.decisions:
        sentences.append(_harm(incident.decisions[0]))
    sentences += [f"done: {done(incident)}", end(incident)]
    return " ".join(formatting.sentence(one) for one in sentences)


def _harm(decision: Mapping[str, Any]) -> str:
    harm = formatting.finite(decision.get("harm"))
    at = formatting.whole(decision.get("at") or decision["step"])
    if harm is None or harm <= 0:
        return f"first seen at step {at}: {formatting.trigger(decision)}"
    nats = formatting.number(harm)
    return (
        f"first seen at step {at}: the loss on the clean probe, {nats} nats above its usual level"
    )


def _skipped(incident: Incident) -> str:
    """Return why nothing was done, where the loop has said it."""
    reasons = [
        str((event.get("detail") or {}).get("reason") or "")
        for event in incident.events
        if event["kind"] == "skipped"
    ]
    found = [reason for reason in dict.fromkeys(reasons) if reason]
    if not found:
        return ""
    return f"{_NOTHING}: {'; '.join(found)}"
