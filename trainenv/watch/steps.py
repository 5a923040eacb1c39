"""Telemetry of a run in memory: appended as it comes, thinned for a picture of any stretch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainenv.records.lineage import last_kept

Numbers = NDArray[np.float64]

COLUMNS = ("loss", "lr", "volatility", "entropy", "disagreement", "index", "threshold")
_SMOOTH = len(COLUMNS)  # place of the smoothed loss
_ALPHA = 0.12  # weight of the newest step in the smoothed loss, as in the report
GHOSTS = 60  # most stretches that were rolled back, the newest ones
_GHOST_POINTS = 48


class Line:
    """Steps of one line of the lineage, in order: `step` (n,) and `values` (n, 8).

    Args:
        smooth: Smoothed loss before the first step; NaN if unknown.
    """

    def __init__(self, smooth: float) -> None:
        self.count = 0
        self._start = smooth
        self._step = np.empty(1024, np.int64)
        self._values = np.empty((1024, len(COLUMNS) + 1), np.float32)

    @property
    def step(self) -> NDArray[np.int64]:
        """Step numbers (n,)."""
        return self._step[: self.count]

    @property
    def values(self) -> NDArray[np.float32]:
        """Values (n, 8) of `COLUMNS`, then the smoothed loss."""
        return self._values[: self.count]

    def smooth_at(self, step: float) -> float:
        """Return the smoothed loss at a step, or at the last one before it; NaN if unknown."""
        place = int(np.searchsorted(self.step, step, side="right")) - 1
        if place < 0:
            return self._start
        return float(self._values[place, _SMOOTH])

    def cut(self, step: float) -> None:
        """Forget the steps from `step` on."""
        self.count = int(np.searchsorted(self.step, step))

    def append(self, step: NDArray[np.int64], values: Numbers) -> None:
        """Add steps after the last one.

        Args:
            step: Step numbers (m,), rising.
            values: Values (m, 7) of `COLUMNS`.
        """
        end = self.count + len(step)
        if end > len(self._step):
            more = max(end, 2 * len(self._step)) - len(self._step)
            self._step = np.pad(self._step, (0, more))
            self._values = np.pad(self._values, ((0, more), (0, 0)))
        last = self.smooth_at(math.inf)
        self._step[self.count : end] = step
        self._values[self.count : end, :_SMOOTH] = values
        self._values[self.count : end, _SMOOTH] = _smoothed(values[:, 0], last)
        self.count = end


class Steps:
    """All steps of a run, by line of the lineage."""

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self._firm: dict[int, float] = {}  # last step of each line that is in the telemetry

    def add(self, rows: Mapping[str, NDArray[Any]], *, firm: bool) -> None:
        """Add rows, in the order of training.

        Args:
            rows: Columns of equal length: `line`, `step` and `COLUMNS`.
            firm: False for rows of `live.jsonl`, which those of the telemetry replace.
        """
        lines = rows["line"].astype(np.int64)
        for number in np.unique(lines).tolist():
            chosen = lines == number
            step = rows["step"][chosen].astype(np.int64)
            values = np.stack([rows[name][chosen].astype(np.float64) for name in COLUMNS], axis=1)
            line = self.lines.get(number)
            if line is None:
                line = self.lines[number] = Line(self._before(number, int(step[0])))
            known = self._firm.get(number, -math.inf)
            if firm:
                line.cut(known + 1)
                self._firm[number] = float(step[-1])
            elif line.count:
                known = max(known, float(line.step[-1]))
            new = step > known
            if new.any():
                line.append(step[new], values[new])

    def kept(self, begun: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """Return the lines of the kept history, in order, each with its number of kept steps.

        Args:
            begun: Records of `lines.jsonl`.
        """
        last = self.last_kept(begun)
        found = []
        for number in sorted(self.lines):
            line = self.lines[number]
            until = last.get(number, math.inf)
            count = line.count
            if until < math.inf:
                count = int(np.searchsorted(line.step, until, side="right"))
            if count:
                found.append((number, count))
        return found

    def last_kept(self, begun: Iterable[Mapping[str, Any]]) -> dict[int, float]:
        """Return the last kept step of each line; -inf for a line that was lost."""
        starts = [(n, int(line.step[0])) for n, line in self.lines.items() if line.count]
        return last_kept(pd.DataFrame(starts, columns=["line", "step"]), begun)

    def _before(self, number: int, step: int) -> float:
        """Return the smoothed loss where a line begins: that of the newest line before it."""
        for earlier in sorted(self.lines, reverse=True):
            line = self.lines[earlier]
            if earlier < number and line.count and line.step[0] < step:
                return line.smooth_at(step - 1)
        return math.nan


def picture(
    steps: Steps,
    kept: Sequence[tuple[int, int]],
    points: int,
    first: float = -math.inf,
    last: float = math.inf,
) -> dict[str, list[Any]]:
    """Return the kept history from `first` to `last` in about `points` points.

    Each point stands for a stretch of steps: `low` and `high` are the least and the greatest loss,
    `smooth` is the smoothed loss at its end, `index` the greatest index, the others are means.
    """
    parts = [(steps.lines[number].step[:n], steps.lines[number].values[:n]) for number, n in kept]
    windows = []
    for step, values in parts:
        a = int(np.searchsorted(step, first))
        b = int(np.searchsorted(step, last, side="right"))
        windows.append((step[a:b], values[a:b]))
    names = ("step", "smooth", "low", "high", *COLUMNS[1:])
    if not windows or not sum(len(step) for step, _ in windows):
        return {name: [] for name in names}
    step = np.concatenate([one for one, _ in windows])
    values = np.concatenate([one for _, one in windows])
    edges = np.unique(np.linspace(0, len(step), points + 1).astype(np.int64))[:-1]
    ends = np.append(edges[1:], len(step)) - 1
    loss = values[:, 0]
    finite = np.isfinite(loss)
    shown: dict[str, NDArray[Any]] = {
        "smooth": values[ends, _SMOOTH],
        "low": np.fmin.reduceat(np.where(finite, loss, np.nan), edges),
        "high": np.fmax.reduceat(np.where(finite, loss, np.nan), edges),
    }
    for place, name in enumerate(COLUMNS[1:], start=1):
        column = values[:, place]
        if name == "index":
            shown[name] = np.fmax.reduceat(column, edges)
        else:
            shown[name] = _means(column, edges)
    return {"step": step[ends].tolist()} | {name: short(one) for name, one in shown.items()}


def ghosts(steps: Steps, kept: Sequence[tuple[int, int]]) -> list[dict[str, list[Any]]]:
    """Return step and loss of the stretches that were rolled back, thinned, the newest last."""
    counts = dict(kept)
    found = []
    for number in sorted(steps.lines):
        line = steps.lines[number]
        start = counts.get(number, 0)
        if start < line.count:
            places = np.unique(np.linspace(start, line.count - 1, _GHOST_POINTS).astype(np.int64))
            found.append(
                {"step": line.step[places].tolist(), "loss": short(line.values[places, 0])}
            )
    return found[-GHOSTS:]


def short(values: NDArray[Any]) -> list[float | None]:
    """Return numbers with five digits, for JSON; None for those that are not finite."""
    return [
        float(f"{value:.5g}") if math.isfinite(value) else None
        for value in np.asarray(values, np.float64).tolist()
    ]


def _means(column: NDArray[Any], edges: NDArray[np.int64]) -> Numbers:
    """Return the mean of each stretch, without what is not finite."""
    known = np.isfinite(column)
    sums = np.add.reduceat(np.where(known, column, 0.0).astype(np.float64), edges)
    counts = np.add.reduceat(known.astype(np.float64), edges)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _smoothed(losses: Numbers, last: float) -> list[float]:
    """Return the exponential mean over the steps so far; what is not finite is skipped."""
    found = []
    for loss in losses.tolist():
        if math.isfinite(loss):
            last = last + _ALPHA * (loss - last) if math.isfinite(last) else loss
        found.append(last)
    return found
