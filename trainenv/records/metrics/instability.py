"""Instability events of a run, how long they last, and how they relate to planted stressors.

All functions are pure functions of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

from trainenv.monitor.harm import Change, Harm, HarmWatch, Onset

NEAR = 16  # greatest distance of an event after a stressor, in steps, that counts as near


class Row(NamedTuple):
    """Telemetry of one step taken, as far as the metrics need it; NaN where not measured."""

    line: int
    step: int
    loss: float
    probe_loss: float = math.nan
    stressors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HarmEvent:
    """One instability event.

    Attributes:
        line: Line of the lineage where it started.
        step: Step where it started.
        taken: Steps taken up to its start, that step included.
        level: Probe loss before it, nats; inf (null in JSON) if there was none yet.
        rise: Greatest probe loss during it above the level, nats; NaN (null) without a level or
            without a finite evaluation.
        lost: Flag: it started with a non-finite loss.
        lasted: Steps taken from its start to its end, or to the end of the run.
        recovered: Flag: it ended before the run did.
    """

    line: int
    step: int
    taken: int
    level: float
    rise: float
    lost: bool
    lasted: int
    recovered: bool


@dataclass(frozen=True, kw_only=True)
class Instability:
    """Number and rate of instability events.

    Attributes:
        events: Number of events.
        steps: Steps taken.
        per_100k: Events per 100 000 steps taken; NaN without steps or without a measured probe.
        cut_short: Number of rises that a rewind ended before they were long enough to be events.
    """

    events: int
    steps: int
    per_100k: float
    cut_short: int = 0


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Steps until events are over.

    Attributes:
        mean: Mean steps; NaN without events, a lower bound if some are unrecovered.
        median: Median steps by Kaplan and Meier; NaN where it is not known.
        events: Number of events.
        unrecovered: Number of events that had not ended with the run.
    """

    mean: float
    median: float
    events: int
    unrecovered: int


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Events near one stressor.

    Attributes:
        steps: Steps taken that had the stressor.
        near: Steps taken at most `NEAR` after one of those, itself included.
        events: Number of events that started there.
    """

    steps: int
    near: int
    events: int


def harm_events(rows: Sequence[Row], harm: Harm | None = None) -> list[HarmEvent]:
    """Return the events in all steps taken, in the order of their start."""
    begun: list[Onset] = []
    over: dict[Onset, int] = {}
    for taken, change in enumerate(_changes(rows, harm), start=1):
        if change.begun is not None:
            begun.append(change.begun)
        over |= dict.fromkeys(change.ended, taken)
    return [_event(rows, onset, over.get(onset)) for onset in begun]


def cut_short(rows: Sequence[Row], harm: Harm | None = None) -> int:
    """Count the rises that a rewind ended before they were long enough to be events."""
    return sum(change.cut_short for change in _changes(rows, harm))


def _changes(rows: Sequence[Row], harm: Harm | None) -> list[Change]:
    watch = HarmWatch(harm)
    return [watch.update(row.step, row.loss, row.probe_loss) for row in rows]


def _event(rows: Sequence[Row], onset: Onset, over: int | None) -> HarmEvent:
    end = len(rows) if over is None else over
    losses = [row.probe_loss for row in rows[onset.taken - 1 : end]]
    finite = [loss for loss in losses if math.isfinite(loss)]
    rise = math.nan
    if finite and math.isfinite(onset.level):
        rise = max(finite) - onset.level
    return HarmEvent(
        line=rows[onset.taken - 1].line,
        step=onset.step,
        taken=onset.taken,
        level=onset.level,
        rise=rise,
        lost=onset.lost,
        lasted=end - onset.taken,
        recovered=over is not None,
    )


def instability(events: int, rows: Sequence[Row], harm: Harm | None = None) -> Instability:
    """Return the rate of events among all steps taken; NaN if the probe was never measured."""
    rate = math.nan
    if any(not math.isnan(row.probe_loss) for row in rows):
        rate = 1e5 * events / len(rows)
    return Instability(
        events=events, steps=len(rows), per_100k=rate, cut_short=cut_short(rows, harm)
    )


def recovery(events: Sequence[HarmEvent]) -> Recovery:
    """Return the time that events lasted; those that had not ended with the run are censored."""
    durations = [(event.lasted, event.recovered) for event in events]
    mean = math.nan
    if durations:
        mean = fmean(lasted for lasted, _ in durations)
    return Recovery(
        mean=mean,
        median=_kaplan_meier(durations),
        events=len(events),
        unrecovered=sum(not recovered for _, recovered in durations),
    )


def _kaplan_meier(durations: Sequence[tuple[int, bool]]) -> float:
    """Return the time when at most half are unrecovered (Kaplan & Meier 1958); NaN if not known."""
    left = len(durations)
    share = 1.0
    for lasted, group in groupby(sorted(durations), key=lambda duration: duration[0]):
        ended = [recovered for _, recovered in group]
        share *= 1 - sum(ended) / left
        left -= len(ended)
        if share <= 0.5 + 1e-12:  # a product of fractions: one half may be rounded up
            return float(lasted)
    return math.nan


def clusters(
    rows: Sequence[Row], events: Sequence[HarmEvent], near: int = NEAR
) -> dict[str, Cluster]:
    """Count the steps and the events near each planted stressor, by name.

    The past of a line is that of the lines it grew from.
    """
    starts = [event.taken for event in events]
    marked: dict[str, list[int]] = {}  # steps of the present history with the stressor, rising
    counts: dict[str, list[int]] = {}
    starting = {taken: starts.count(taken) for taken in starts}
    before = 0
    for taken, row in enumerate(rows, start=1):
        for name in set(row.stressors):
            marked.setdefault(name, [])
            counts.setdefault(name, [0, 0, 0])[0] += 1
        for name, steps in marked.items():
            while row.step <= before and steps and steps[-1] >= row.step:
                steps.pop()
            if name in row.stressors:
                steps.append(row.step)
            if steps and row.step - steps[-1] <= near:
                counts[name][1] += 1
                counts[name][2] += starting.get(taken, 0)
        before = row.step
    return {
        name: Cluster(steps=had, near=close, events=began)
        for name, (had, close, began) in sorted(counts.items())
    }
