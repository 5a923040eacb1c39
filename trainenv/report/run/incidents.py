"""Incidents of a run: alarms and harm that belong together, with what was done and how they ended.

An incident begins with an alarm, a non-finite loss, harm on the clean probe, or a divergence.
Whatever follows within `GAP` steps or 2 % of the run belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import floats, smoothed
from trainenv.report.run.run_record import RunRecord

GAP = 20  # steps
_BEFORE = 50  # steps that the level before an incident is measured on
_FEWEST = 5
_BEGINS = ("fired", "non_finite", "diverged")
_HARMFUL = ("harm", "fired", "diverged")  # triggers of decisions that answer an incident
_NOISE = 4.0  # a rise by so many standard deviations of the loss is no noise


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A stretch of the run in which something was wrong.

    Attributes:
        number: Number in the run, from 1 on.
        first: First step of it.
        last: Last step at which something was seen or done.
        events: Its events, in order.
        decisions: Decisions that answered it, in order.
        planted: Planted faults in its steps; empty where nothing was planted.
        before: Median training loss of the steps before it, nats per token; None if unknown.
        peak: Highest training loss in it if that is no noise, nats per token; None without a rise.
        finite: False if the loss was not finite in it.
        undone: Steps (from, to) that were rolled back; None if none were.
        over: Kept step at which the smoothed loss was back at `before`; None if it never was.
    """

    number: int
    first: int
    last: int
    events: Sequence[Mapping[str, Any]] = field(repr=False)
    decisions: Sequence[Mapping[str, Any]] = field(repr=False)
    planted: tuple[str, ...] = ()
    before: float | None = None
    peak: float | None = None
    finite: bool = True
    undone: tuple[int, int] | None = None
    over: int | None = None

    @property
    def alarms(self) -> int:
        """The number of alarms."""
        return sum(event["kind"] == "fired" for event in self.events)

    @property
    def noticed(self) -> int:
        """The step at which it was noticed; a rollback undoes steps before that too."""
        steps = [_seen_at(event, None) for event in self.events if event["kind"] in _BEGINS]
        steps += [_seen_at(decision, decision) for decision in self.decisions]
        return min(steps, default=self.first)

    @property
    def rose(self) -> bool:
        """True if the training loss rose by more than noise, or was not finite."""
        return self.peak is not None or not self.finite

    @property
    def is_over(self) -> bool:
        """True if the loss is back where it was, or never left it."""
        return not self.diverged and (not self.rose or self.over is not None)

    @property
    def diverged(self) -> bool:
        """True if the run diverged in it and did not go back."""
        kinds = [event["kind"] for event in self.events]
        return "diverged" in kinds and "rewind" not in kinds[kinds.index("diverged") :]


@dataclass(kw_only=True)
class _Found:
    """An incident that is being put together."""

    first: int
    last: int
    events: list[Mapping[str, Any]] = field(default_factory=list)
    decisions: list[Mapping[str, Any]] = field(default_factory=list)

    def takes(self, step: int, gap: int) -> bool:
        return self.first - gap <= step <= self.last + gap


def incidents_of(record: RunRecord, events: Sequence[Mapping[str, Any]]) -> list[Incident]:
    """Return the incidents of a run, in order of their first step.

    Args:
        record: Run.
        events: Its events, as `trainenv.records.faults.each_once` returns them.
    """
    gap = max(GAP, (record.budget or record.last_step) // 50)
    by_number = {decision["number"]: decision for decision in record.decisions}
    found: list[_Found] = []
    loose: list[Mapping[str, Any]] = []  # a rollback is recorded before the decision that it is of
    for event in events:
        decision = by_number.get((event.get("detail") or {}).get("number"))
        step = _seen_at(event, decision)
        begins = event["kind"] in _BEGINS or (decision is not None and _answers(decision))
        if not (found and found[-1].takes(step, gap) and (begins or _belongs(event))):
            if not begins:
                loose = [event] if event["kind"] == "rewind" else []
                continue
            found.append(_Found(first=step, last=step))
            found[-1].events += [one for one in loose if one["step"] == step]
            loose = []
        now = found[-1]
        now.events.append(event)
        now.first = min(now.first, step)
        now.last = max(now.last, step)
        if decision is not None and event["kind"] == "decision":
            now.decisions.append(decision)
            now.first = min(now.first, _harm_began(decision))
    return [_measured(record, place, one) for place, one in enumerate(found, 1)]


def _seen_at(event: Mapping[str, Any], decision: Mapping[str, Any] | None) -> int:
    if decision is not None and isinstance(decision.get("at"), int):
        return int(decision["at"])
    return int(event["step"])


def _answers(decision: Mapping[str, Any]) -> bool:
    return decision.get("why") in _HARMFUL


def _harm_began(decision: Mapping[str, Any]) -> int:
    """Return the first step that a rollback would undo: its harm was seen later than it began."""
    return int(decision["step"]) + 1


def _belongs(event: Mapping[str, Any]) -> bool:
    """Tell if an event can be part of an incident: a change by plan is not."""
    detail = event.get("detail") or {}
    if event["kind"] == "skipped":
        return detail.get("why") in _HARMFUL
    return event["kind"] in ("rewind", "replay", "gave_up") or (
        event["kind"] == "intervention" and not detail.get("plan")
    )


def _measured(record: RunRecord, number: int, found: _Found) -> Incident:
    """Measure the loss before, in and after an incident."""
    undone = None
    backs = [
        (int(to) + 1, int(event["step"]))
        for event in found.events
        if event["kind"] == "rewind"
        and (to := formatting.finite((event.get("detail") or {}).get("to"))) is not None
    ]
    if backs:
        undone = (min(first for first, _ in backs), max(last for _, last in backs))
    steps = record.steps
    ahead = floats(steps.loc[steps["step"] < found.first, "loss"])[-_BEFORE:]
    ahead = ahead[np.isfinite(ahead)]
    here = steps[(steps["step"] >= found.first) & (steps["step"] <= found.last + GAP)]
    losses = floats(here["loss"])
    before, peak, over = None, None, None
    if len(ahead) >= _FEWEST:
        before = float(np.median(ahead))
        noise = max(float(np.std(ahead)), 1e-3 * abs(before))
        highest = float(np.max(losses[np.isfinite(losses)], initial=before))
        if highest > before + _NOISE * noise:
            peak = highest
        over = _back_at(record, found, before + noise / 2)
    return Incident(
        number=number,
        first=found.first,
        last=found.last,
        events=found.events,
        decisions=found.decisions,
        planted=_planted(record, found.first, found.last),
        before=before,
        peak=peak,
        finite=bool(np.isfinite(losses).all()),
        undone=undone,
        over=over,
    )


def _back_at(record: RunRecord, found: _Found, level: float) -> int | None:
    """Return the kept step from which on the smoothed loss is at a level again."""
    kept = record.kept
    steps: NDArray[np.float64] = floats(kept["step"])
    smooth = floats(smoothed(kept["loss"]))
    worst = found.first
    inside = (steps >= found.first) & (steps <= found.last + GAP)
    if inside.any():
        worst = int(steps[inside][np.nanargmax(np.nan_to_num(smooth[inside], nan=-np.inf))])
    after = np.flatnonzero((steps >= worst) & (smooth <= level))
    if not len(after):
        return None
    return int(steps[after[0]])


def _planted(record: RunRecord, first: int, last: int) -> tuple[str, ...]:
    """Return the faults planted in the steps of an incident, and shortly before.

    Faults of single batches, which are planted all over the run, are named where there is no other.
    """
    names = [plant["kind"] for plant in _plants(record) if first - GAP <= plant["at"] <= last]
    if not names:
        near = range(first - 2, last + 1)
        names = [name for step in near for name in record.planted.get(step, ())]
    return tuple(dict.fromkeys(names))


def _plants(record: RunRecord) -> Iterable[Mapping[str, Any]]:
    stressors = record.config.get("stressors")
    planted = stressors.get("planted") if isinstance(stressors, Mapping) else None
    return [
        plant
        for plant in planted or ()
        if isinstance(plant, Mapping) and isinstance(plant.get("at"), int) and "kind" in plant
    ]
