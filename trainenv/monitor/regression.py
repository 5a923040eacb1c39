"""The regression trigger: slow harm, which no single step shows.

It compares the run with its own past in two ways.

*Validation.* Let x be ln of the validation loss at each evaluation point (the order of perplexities
is the same). The mean of the last `window` changes of x, at least `least` of them, is the trend;
their standard deviation, at least `floor`, is σ. The expected x is on the line with that slope
through the median of these points, taken at the last point, but never below the last point itself.
A point is *worse* if its x is more than `sigmas` · σ above the value expected before the first of
the consecutive worse points. So a lasting jump is two worse points, and a falling loss has none. A
single worse point is forgotten at the next point that is not worse. At `times` consecutive worse
points the trigger fires; then all earlier points are raised by the rise, so that the new height is
the base of later comparisons. A loss that is not a finite number above 0 fires at once.

*Instability.* Events are those of `trainenv.monitor.harm`. With at least `baseline` steps before
them, the events of the last `recent` steps are compared with all earlier ones. The trigger fires if

- their rate is more than `rate` times the earlier rate,
- there are at least `events` of them (a single event is for the uncertainty index), and
- there are more than E + `chance` · √E of them, where E is their number at the earlier rate and √E
  the standard deviation of a Poisson count. Otherwise an unchanged run would fire at every other
  window.

After firing, the recent steps are counted anew.

A step at or below the last one means that the run was rewound: validations from there on are
forgotten, and the steps count again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any

from trainenv.monitor.harm import Harm, HarmWatch
from trainenv.types import Telemetry, UserError


@dataclass(frozen=True, kw_only=True)
class Regression:
    """The thresholds of the trigger.

    Args:
        sigmas: Height above the expected ln validation loss from which a point is worse, σ.
        times: Number of consecutive worse points that fire.
        window: Number of changes between points for the trend and σ.
        least: Number of changes below which no point is compared.
        floor: Least σ, ln loss: 0.002 is 0.2 %.
        rate: Ratio of the recent rate of events to the earlier rate that must be exceeded.
        recent: Number of steps that are recent.
        baseline: Least number of steps before them, so that there is a rate to compare with.
        events: Least number of recent events.
        chance: Standard deviations of a Poisson count that recent events must be above the earlier
            rate; 0 compares the rates alone.
        harm: Definition of an event.

    Raises:
        UserError: A number is out of range.
    """

    sigmas: float = 1.5
    times: int = 2
    window: int = 8
    least: int = 4
    floor: float = 0.002
    rate: float = 1.25
    recent: int = 250
    baseline: int = 250
    events: int = 2
    chance: float = 1.5
    harm: Harm = field(default_factory=Harm)

    def __post_init__(self) -> None:
        counts = (
            min(self.times, self.recent, self.baseline, self.events) >= 1
            and 2 <= self.least <= self.window
        )
        sizes = (
            0 < self.sigmas < math.inf and 0 < self.floor < math.inf and 0 <= self.chance < math.inf
        )
        if not (counts and sizes and 1 <= self.rate < math.inf):
            raise UserError(
                "regression needs sigmas and floor above 0, chance ≥ 0, rate ≥ 1, "
                "2 ≤ least ≤ window, and times, recent, baseline and events ≥ 1, "
                f"found {self!r}; leave the numbers out to use the defaults"
            )


class RegressionTrigger:
    """A trigger that fires with a reason when a run has become worse than it was.

    It is deterministic, and takes constant time and memory a step.
    """

    def __init__(self, config: Regression | None = None) -> None:
        self.config = config or Regression()
        # Step, ln loss, and the rise of the points before it. More points are kept than used, so
        # that some are left after a rewind.
        self._points: deque[tuple[int, float, float]] = deque(maxlen=4 * (self.config.window + 1))
        self._worse: list[tuple[int, float]] = []  # step and ln loss of consecutive worse points
        self._watch = HarmWatch(self.config.harm)
        self._recent: deque[int] = deque()  # steps taken when each recent event started
        self._earlier = 0  # number of events before the recent ones
        self._since = 0  # steps taken when it last fired; recent events start after it

    def validated(self, step: int, loss: float) -> str:
        """Take in one more validation of the run.

        Args:
            step: Number of completed optimizer steps; if it is not above the last one, the run was
                rewound.
            loss: Clean validation loss, nats per token.

        Returns:
            The reason to fire; empty if it does not fire.
        """
        self._go_back(step)
        if not 0 < loss < math.inf:
            return f"validation loss at step {step} is not a finite number above 0: {loss}"
        value = math.log(loss)
        if len(self._points) <= self.config.least:
            self._points.append((step, value, 0.0))
            return ""
        expected, sigma = self._expected()
        if value <= expected + self.config.sigmas * sigma:
            self._worse.clear()
            self._points.append((step, value, 0.0))
            return ""
        self._worse.append((step, value))
        if len(self._worse) < self.config.times:
            return ""
        rise = value - expected
        self._points.append((step, value, rise))
        self._worse.clear()
        return (
            f"validation loss at step {step} is {100 * math.expm1(min(rise, 700)):.3g} % above "
            f"the expected one: {rise / sigma:.1f} σ, the {_ordinal(self.config.times)} "
            f"consecutive evaluation above {self.config.sigmas:g} σ"
        )

    def windowed(self, telemetry: Iterable[Telemetry]) -> str:
        """Take in the next steps of the run, in order.

        Returns:
            The reason to fire; empty if it does not fire.
        """
        reason = ""
        for one in telemetry:
            change = self._watch.update(one.step, one.loss, one.probe_loss)
            if change.begun is not None:
                self._recent.append(change.begun.taken)
            reason = self._compare_rates() or reason
        return reason

    @property
    def harm(self) -> float:
        """Height of the last clean-probe loss above its level, nats; NaN while it is unknown."""
        return self._watch.above

    @property
    def noise(self) -> float:
        """Standard deviation of a clean-probe loss about its trend, nats; NaN if unknown."""
        return self._watch.noise

    @property
    def rising(self) -> int | None:
        """Step of the first raised probe of the present rise; None without one."""
        return self._watch.rising

    def _compare_rates(self) -> str:
        """Compare the recent rate of events with the earlier one; return the reason to fire."""
        taken = self._watch.taken
        start = max(self._since, taken - self.config.recent)  # steps taken before the recent ones
        while self._recent and self._recent[0] <= start:
            self._recent.popleft()
            self._earlier += 1
        count = len(self._recent)
        if count < self.config.events or start < self.config.baseline:
            return ""
        recent = count / self.config.recent
        before = self._earlier / start
        usual = before * self.config.recent
        by_chance = usual + self.config.chance * math.sqrt(usual)
        if recent <= self.config.rate * before or count <= by_chance:
            return ""
        self._since = taken
        return (
            f"{count} instability events in the last {self.config.recent} steps, "
            f"{1000 * recent:.1f} in 1000, against {1000 * before:.1f} before them"
        )

    def _expected(self) -> tuple[float, float]:
        """Return the expected ln loss and σ."""
        values: list[float] = []
        lift = 0.0
        for _, value, rise in list(self._points)[: -self.config.window - 2 : -1]:
            values.insert(0, value + lift)
            lift += rise
        changes = [after - before for before, after in pairwise(values)]
        trend = fmean(changes)
        line = median(
            value + trend * (len(values) - 1 - place) for place, value in enumerate(values)
        )
        return max(values[-1], line), max(self.config.floor, stdev(changes, trend))

    def _go_back(self, step: int) -> None:
        while self._worse and self._worse[-1][0] >= step:
            self._worse.pop()
        while self._points and self._points[-1][0] >= step:
            self._points.pop()

    def state_dict(self) -> dict[str, Any]:
        """Return strict JSON values."""
        return {
            "looks": [list(point) for point in self._points],
            "worse": [list(point) for point in self._worse],
            "harm": self._watch.state_dict(),
            "events": [list(self._recent), self._earlier, self._since],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned."""
        self._points = deque(
            ((step, value, rise) for step, value, rise in state["looks"]),
            maxlen=self._points.maxlen,
        )
        self._worse = [(step, value) for step, value in state["worse"]]
        self._watch.load_state_dict(state["harm"])
        recent, self._earlier, self._since = state["events"]
        self._recent = deque(recent)


def _ordinal(count: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(count, f"{count}th")
