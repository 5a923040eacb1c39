"""Instability events of a run, how long they lasted, and how they stand to what was planted.

Pure functions of its steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

from trainenv.monitor.harm import Change, Harm, HarmWatch, Onset

NEAR = 16  # steps after a stressor within which an event is read as near it


class Row(NamedTuple):
    """One step taken: what of its telemetry the metrics need. NaN: not measured."""

    line: int
    step: int
    loss: float
    probe_loss: float = math.nan
    stressors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HarmEvent:
    """One instability event.

    Attributes:
        line, step, taken: where it started; `taken` counts the steps taken by then, this one
            included.
        level: probe loss before it, nats; inf (null in JSON) where there was none yet.
        rise: of the highest look during it above the level, nats; NaN (null) where there was no
            level or no finite look.
        lost: whether it started with a loss that is no finite number.
        lasted: steps taken from its start to its end, or to the end of the run.
        recovered: whether it ended.
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
    """Events in all steps taken, and per 100 000 of them (NaN where none were taken, or harm could not be seen).

    `cut_short` counts rises beside these that a rewind left behind before they had lasted long
    enough to be events.
    """

    events: int
    steps: int
    per_100k: float
    cut_short: int = 0


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Steps until events are over; NaN without events.

    `mean` is a lower bound where some are `unrecovered`, see the package.
    """

    mean: float
    median: float
    events: int
    unrecovered: int


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A stressor: steps taken that had it, steps at most `NEAR` after one (itself included), events that started there."""

    steps: int
    near: int
    events: int


def harm_events(rows: Sequence[Row], harm: Harm | None = None) -> list[HarmEvent]:
    """The events of all steps taken, in the order they started."""
    begun: list[Onset] = []
    over: dict[Onset, int] = {}
    for taken, change in enumerate(_changes(rows, harm), start=1):
        if change.begun is not None:
            begun.append(change.begun)
        over |= dict.fromkeys(change.ended, taken)
    return [_event(rows, onset, over.get(onset)) for onset in begun]


def cut_short(rows: Sequence[Row], harm: Harm | None = None) -> int:
    """Rises that a rewind left behind before they had lasted long enough to be events."""
    return sum(change.cut_short for change in _changes(rows, harm))


def _changes(rows: Sequence[Row], harm: Harm | None) -> list[Change]:
    watch = HarmWatch(harm)
    return [watch.update(row.step, row.loss, row.probe_loss) for row in rows]


def _event(rows: Sequence[Row], onset: Onset, over: int | None) -> HarmEvent:
    end = len(rows) if over is None else over
    looks = [row.probe_loss for row in rows[onset.taken - 1 : end] if math.isfinite(row.probe_loss)]
    known = looks and math.isfinite(onset.level)
    return HarmEvent(
        line=rows[onset.taken - 1].line,
        step=onset.step,
        taken=onset.taken,
        level=onset.level,
        rise=max(looks) - onset.level if known else math.nan,
        lost=onset.lost,
        lasted=end - onset.taken,
        recovered=over is not None,
    )


def instability(events: int, rows: Sequence[Row], harm: Harm | None = None) -> Instability:
    """The rate of that many events among all steps taken; none where the clean probe was never measured."""
    seen = any(not math.isnan(row.probe_loss) for row in rows)
    rate = 1e5 * events / len(rows) if seen else math.nan
    return Instability(
        events=events, steps=len(rows), per_100k=rate, cut_short=cut_short(rows, harm)
    )


def recovery(events: Sequence[HarmEvent]) -> Recovery:
    """How long events lasted; those that had not ended when the run did are censored."""
    durations = [(event.lasted, event.recovered) for event in events]
    return Recovery(
        mean=fmean(lasted for lasted, _ in durations) if durations else math.nan,
        median=_kaplan_meier(durations),
        events=len(events),
        unrecovered=sum(not recovered for _, recovered in durations),
    )


def _kaplan_meier(durations: Sequence[tuple[int, bool]]) -> float:
    """The first time by which at most half are still going on (Kaplan & Meier 1958); NaN where that is not known."""
    going = len(durations)
    share = 1.0
    for lasted, group in groupby(sorted(durations), key=lambda duration: duration[0]):
        ended = [recovered for _, recovered in group]
        share *= 1 - sum(ended) / going
        going -= len(ended)
        if (
            share <= 0.5 + 1e-12
        ):  # a product of fractions: one half may come out a rounding above it
            return float(lasted)
    return math.nan


def clusters(
    rows: Sequence[Row], events: Sequence[HarmEvent], near: int = NEAR
) -> dict[str, Cluster]:
    """For each name that was planted, how often, and what started near it.

    A line's past is that of the lines it grew from.
    """
    starts = [event.taken for event in events]
    marked: dict[str, list[int]] = {}  # steps of the present history that had it, rising
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
