"""Verdict on a run: the answers that a person on call needs first.

Is it fine? What happened, and when? What was done? Is there anything to do? What did it cost? Which
model, data, configuration, versions and command?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainenv.records.faults import faults_of
from trainenv.report.drawing import formatting
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.run.incident_words import cause, end, seen
from trainenv.report.run.left_alone import against
from trainenv.report.run.made_with import Made
from trainenv.report.run.run_record import RunRecord
from trainenv.report.run.run_summary import Facts
from trainenv.report.run.timeline import Story
from trainenv.tools.paths import typed

_WORSE = 0.02  # share by which the last validation loss may be above the lowest one
_LISTED = 3  # most incidents that are described; more are counted
_WORDS = {
    "fine": "Fine",
    "look": "Look at it",
    "stopped": "Not finished",
    "bad": "Diverged",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        state: `fine`, `look` (it has ended or trains, and something needs a person), `stopped` (it
            has not ended), or `bad` (it diverged).
        headline: Sentence on where the run is and how good.
        todo: Sentences on what there is to do; empty for nothing.
        answers: Question and answer, in the order in which they are shown.
    """

    state: str
    headline: str
    todo: Sequence[str]
    answers: Sequence[tuple[str, str]]

    @property
    def word(self) -> str:
        """The state in a word or two."""
        return _WORDS[self.state]

    @classmethod
    def of(cls, record: RunRecord, story: Story) -> Verdict:
        facts = Facts.of(record)
        todo = _todo(record, facts, story)
        made = Made.of(record)
        answers = [
            ("What happened", _happened(story)),
            ("What was done", _done(facts, story)),
            ("To do", " ".join(todo) or "Nothing."),
            ("Cost", _cost(record, facts)),
            ("Full validation loss", _nats(facts.full_loss)),
            ("Test loss", _nats(facts.test_loss)),
            ("Model", made.model),
            ("Data", made.data),
            ("Versions", made.versions),
            ("Configuration", made.configuration),
            ("Command", made.command),
        ]
        return cls(
            state=_state(facts, todo),
            headline=_headline(record, facts),
            todo=todo,
            answers=[(name, text) for name, text in answers if text],
        )


def verdict_box(verdict: Verdict) -> str:
    """Draw the verdict: its word, its sentence, and the answers below."""
    head = element(
        "p",
        element("b", escaped(verdict.word), class_=f"state {verdict.state}"),
        " ",
        escaped(verdict.headline),
        class_="verdict",
    )
    rows = [
        element(
            "div", element("dt", escaped(name)), element("dd", escaped(text)), class_=_wide(name)
        )
        for name, text in verdict.answers
    ]
    return head + element("dl", *rows, class_="answers")


def _wide(name: str) -> str | None:
    return "whole" if name in ("What happened", "Configuration", "Command") else None


def _state(facts: Facts, todo: Sequence[str]) -> str:
    if facts.diverged:
        return "bad"
    if not facts.finished:
        return "stopped"
    return "look" if todo else "fine"


def _headline(record: RunRecord, facts: Facts) -> str:
    steps = formatting.whole(facts.steps)
    if facts.budget:
        steps += f" of {formatting.whole(facts.budget)}"
    ended = f"{facts.ended[:1].upper()}{facts.ended[1:]}"
    if facts.loss is None:
        return f"{ended}, at step {steps}. No validation loss is known."
    text = (
        f"{ended}, at step {steps}. Validation loss {formatting.number(facts.loss)} nats per token"
    )
    if record.left_alone is not None and (words := against(facts, Facts.of(record.left_alone))):
        text += f": {words}"
    if facts.test_loss is not None:
        text += f"; test loss {formatting.number(facts.test_loss)}"
    return f"{text}."


def _nats(loss: float | None) -> str:
    return "" if loss is None else f"{formatting.number(loss)} nats per token."


def _happened(story: Story) -> str:
    found = story.incidents
    if not found:
        return "No incident: no alarm, no harm, no fault."
    over = sum(one.is_over for one in found)
    state = f"{over} of them over"
    if over == len(found):
        state = "it is over" if len(found) == 1 else "all are over"
    parts = [f"{formatting.counted(len(found), 'incident').capitalize()}, {state}."]
    worst = sorted(found, key=lambda one: (one.is_over, not one.rose, -(one.peak or 0.0)))
    for one in sorted(worst[:_LISTED], key=lambda one: one.first):
        planted = cause(one)
        about = f" ({planted} planted there)" if planted else ""
        parts.append(f"Step {formatting.whole(one.noticed)}: {seen(one)}{about}; {end(one)}.")
    if len(found) > _LISTED:
        parts.append(f"{len(found) - _LISTED} more in the timeline.")
    return " ".join(parts)


def _done(facts: Facts, story: Story) -> str:
    parts = []
    if story.planned:
        parts.append(
            f"the learning rate was changed by plan {_times(story.planned)}"
            + (f", now ×{facts.lr_scale:.3g} of the schedule" if facts.lr_scale else "")
        )
    parts += list(dict.fromkeys(story.rules))[:_LISTED]
    if facts.rewinds:
        parts.append(f"{formatting.counted(facts.rewinds, 'rollback')}")
    if facts.verified:
        parts.append(
            f"{formatting.counted(facts.verified, 'decision')} by trial, {facts.accepted} accepted"
        )
    if not parts:
        return "Nothing was changed."
    return formatting.sentence("; ".join(parts))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _todo(record: RunRecord, facts: Facts, story: Story) -> list[str]:
    """Return what there is to do, each with a command where one helps."""
    folder = typed(record.path)
    todo = []
    if facts.diverged:
        optimizer = record.config.get("optimizer")
        lr = formatting.finite(optimizer.get("lr")) if isinstance(optimizer, Mapping) else None
        lower = f" --set optimizer.lr={lr / 3:.2g}" if lr else ""
        before = [v["step"] for v in record.validation if v["kept"] and v["step"] < facts.steps]
        place = f"{folder}@{before[-1]}" if before else folder
        todo.append(f"Continue from before that at a lower rate: trainenv fork {place}{lower}")
    elif not facts.finished:
        todo.append(
            f"If no process trains it any more, resume it: trainenv run --resume --out {folder}"
        )
    losses = [v["loss"] for v in record.validation if v["kept"] and formatting.finite(v["loss"])]
    if facts.loss is not None and losses and facts.loss > (1 + _WORSE) * min(losses):
        lowest = min(losses)
        todo.append(
            f"The validation loss is {100 * (facts.loss / lowest - 1):.0f} % above the lowest one "
            f"({formatting.number(lowest)}): look at the last incident, or fork from before it."
        )
    elif any(not one.is_over for one in story.incidents[-1:]) and not facts.diverged:
        todo.append("The last incident is not over: look at it in the timeline.")
    todo += [
        f"Fault from step {formatting.whole(fault['step'])} on: {fault['reason']}."
        for fault in faults_of(record.events)[:2]
    ]
    if any(event["kind"] == "gave_up" for event in record.events):
        todo.append("Steering was given up: the timeline says why.")
    return todo


def _cost(record: RunRecord, facts: Facts) -> str:
    parts = []
    if facts.total_flops:
        parts.append(formatting.flops(facts.total_flops))
    ends = [one for one in record.processes if one["kind"] == "end"]
    seconds = sum(formatting.finite(one.get("seconds")) or 0.0 for one in ends)
    seconds = seconds or formatting.finite((record.summary or {}).get("seconds")) or 0.0
    if seconds:
        parts.append(f"{formatting.duration(seconds)} of training")
    if facts.wasted is not None:
        parts.append(
            f"{formatting.share(facts.wasted)} wasted on undone steps and discarded branches"
        )
    if facts.drafting:
        parts.append(f"{formatting.share(facts.drafting)} for planning")
    if record.summary is not None and facts.budget and facts.steps < facts.budget:
        steps = formatting.counted(facts.budget - facts.steps, "step")
        if not facts.diverged:
            parts.append(f"which together took {steps} of the budget")
    if not parts:
        return "Known when the run has ended."
    return formatting.sentence(", ".join(parts))
