"""The problem that every threshold method solves: axes, counted evaluations, and the result.

    space = ThresholdSpace(axes=(Axis(name="fallback", low=0.05, high=0.95),))
    problem = TuningProblem(measure, space, budget=64)
    tuned = tune(Grid(), problem)
    tuned.best.values                                 # {"fallback": 0.35}

A method works on points of the unit cube and knows nothing of language models. All that it learns
comes from `TuningProblem.score`, and each call is one evaluation of the budget. Methods are thus
compared at equal budgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.tools.checks import number, whole
from trainenv.types import UserError

Floats = NDArray[np.float64]
_SAME = 1e-6  # distance in the unit cube below which two points are the same


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Range of one setting.

    Attributes:
        name: Name of the setting.
        low: Lowest value.
        high: Highest value.
        log: Flag: equal ratios are equally far apart, so that low values get more resolution.
        whole: Flag: values are whole numbers.

    Raises:
        UserError: The range is empty or not finite, or a logarithmic one does not start above 0.
    """

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        number(f"the highest {self.name}", self.high, least=number(self.name, self.low))
        if self.log:
            number(f"the lowest {self.name}", self.low, above=0)

    def value(self, share: float) -> float:
        """Return the value at a share of the range, 0 to 1."""
        share = min(max(share, 0.0), 1.0)
        value = self.low + share * (self.high - self.low)
        if self.log:
            value = self.low * (self.high / self.low) ** share
        if self.whole:
            value = round(value)
        return min(max(float(value), self.low), self.high)

    def share(self, value: float) -> float:
        """Return the share of the range at which a value lies; values outside are moved inside."""
        value = min(max(float(value), self.low), self.high)
        if self.high == self.low:
            return 0.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class ThresholdSpace:
    """The settings to choose, as a unit cube.

    Attributes:
        axes: Axes, D of them.

    Raises:
        UserError: There is no axis, or two have the same name.
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"a threshold space needs axes with different names, found {names}; give each one"
            )

    @property
    def dimensions(self) -> int:
        """The number of axes, D."""
        return len(self.axes)

    def values(self, point: ArrayLike) -> dict[str, float]:
        """Return the settings at a point [D] of the unit cube, by name."""
        shares = np.asarray(point, dtype=np.float64)
        return {axis.name: axis.value(float(s)) for axis, s in zip(self.axes, shares, strict=True)}

    def point(self, values: Mapping[str, float]) -> Floats:
        """Return the point [D] of some settings."""
        return np.array([axis.share(values[axis.name]) for axis in self.axes])

    def lattice(self, count: int) -> Floats:
        """Return the largest even lattice of at most `count` points, [N, D], edges included."""
        side = 1
        while (side + 1) ** self.dimensions <= count:
            side += 1
        line = np.linspace(0, 1, side)
        if side == 1:
            line = np.array([0.5])
        mesh = np.meshgrid(*([line] * self.dimensions), indexing="ij")
        return np.stack([part.ravel() for part in mesh], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluation.

    Attributes:
        point: Point of the unit cube, D shares.
        values: Settings by name.
        score: Measured score, higher is better; NaN if the measurement failed.
        details: Further measurements, such as speed-up, acceptance and distance.
    """

    point: tuple[float, ...]
    values: Mapping[str, float]
    score: float
    details: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {
            "point": list(self.point),
            "values": dict(self.values),
            "score": self.score,
            "details": dict(self.details),
        }


Measure = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Function from settings to measurements: `score`, higher is better, and any details."""


class TuningProblem:
    """One task: a measure, its axes, and a budget of evaluations.

    Args:
        measure: Function that measures settings.
        space: Axes of the settings.
        budget: Number of evaluations that a method may spend.
        known: Trials of an interrupted search, in their order. They answer the first evaluations,
            which count but are not measured again.
        record: Function to call with each new trial, for example to write a log.
        stop: Function to call before each evaluation; True ends the search.

    Attributes:
        trials: Trials so far.
    """

    def __init__(
        self,
        measure: Measure,
        space: ThresholdSpace,
        *,
        budget: int,
        known: Sequence[Trial] = (),
        record: Callable[[Trial], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.space = space
        self.budget = whole("budget", budget, least=1)
        self.trials: list[Trial] = []
        self._measure = measure
        self._known = tuple(known)
        self._record = record
        self._stop = stop

    @property
    def left(self) -> int:
        """The number of evaluations that remain; 0 once a stop was requested."""
        if self._stop():
            return 0
        return self.budget - len(self.trials)

    def score(self, point: ArrayLike) -> float:
        """Spend one evaluation on a point [D] of the unit cube.

        Returns:
            Score, higher is better; NaN if the measurement failed.

        Raises:
            UserError: The budget is spent, or the trials known are those of another search.
        """
        if len(self.trials) >= self.budget:
            raise UserError(
                f"the search must end after {self.budget} evaluations, found one more; "
                "raise the budget"
            )
        shares = np.clip(np.nan_to_num(np.asarray(point, dtype=np.float64), nan=0.5), 0, 1)
        place = tuple(float(share) for share in shares)
        done = len(self.trials)
        if done < len(self._known):
            trial = self._known[done]
            if not _same(trial.point, place):
                raise UserError(
                    f"evaluation {done + 1} must repeat that of the interrupted search, "
                    f"{trial.values}, found {self.space.values(place)}; give another folder, or "
                    "the same method and seed"
                )
        else:
            trial = self._measured(place)
            self._record(trial)
        self.trials.append(trial)
        return trial.score

    def _measured(self, place: tuple[float, ...]) -> Trial:
        values = self.space.values(place)
        found = {name: float(value) for name, value in self._measure(values).items()}
        score = found.pop("score", math.nan)
        if not math.isfinite(score):
            score = math.nan
        return Trial(point=place, values=values, score=score, details=found)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Result of a search.

    Attributes:
        method: Name of the method.
        best: Trial with the highest score, the first of equal ones.
        trials: All trials in their order.
    """

    method: str
    best: Trial
    trials: tuple[Trial, ...] = field(repr=False)


@runtime_checkable
class ThresholdMethod(Protocol):
    """Search for good settings.

    `search` is called once. It calls `problem.score` while `problem.left` is above 0. It must do
    the same again with the same answers, so that an interrupted search can resume.
    """

    name: Any

    def search(self, problem: TuningProblem, /) -> None:
        """Spend the budget of a problem."""


def tune(method: ThresholdMethod, problem: TuningProblem) -> Tuned:
    """Spend the budget of a problem with a method, and return the best trial.

    Raises:
        UserError: No evaluation gave a finite score.
    """
    method.search(problem)
    sound = [trial for trial in problem.trials if math.isfinite(trial.score)]
    if not sound:
        raise UserError(
            f"the search needs an evaluation with a finite score, found {len(problem.trials)} "
            "without one; check the measure"
        )
    best = max(sound, key=lambda trial: trial.score)
    return Tuned(method=str(method.name), best=best, trials=tuple(problem.trials))


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=_SAME))
