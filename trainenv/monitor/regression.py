"""The regression trigger: validation perplexity 1.5 σ worse twice in a row, or 25 % more instability than the run had before.

Both compare the run with its own past, and both are for slow harm, which no single step shows.

*Validation.* Let x be ln of the validation loss at each look (perplexity is exp of the loss: the order is the same). Over the
last `window` changes of x, at least `least` of them, their mean is the trend and their standard deviation σ, at least `floor`.
What is expected is the line with that slope through the median of these looks, taken where the last look is, but never less
than the last look itself. A look is *worse* if it lies more than `sigmas` · σ above what was expected before the first of the
worse looks in a row; so a jump that stays is two, and a loss that only falls has none. Worse looks are kept apart: one alone
is forgotten when the next is not. At `times` in a row it fires, and for what follows the looks before are lifted by the rise:
the new height is what is compared with from there on. A loss that is no finite number above 0 fires at once.

*Instability.* Events are those of `trainenv.monitor.harm`. Those of the last `recent` steps taken are compared with
those of all steps before these, once there are at least `baseline` of them: it fires where their rate is more than `rate`
times as high, they are at least `events` of them (a single event is for the uncertainty index to see), and they are more than
chance makes of the old rate: more than the E that it gives by over `chance` · √E, the standard deviation of a Poisson count.
Without that a run that is as it always was would fire at every other window. After firing, what is recent begins anew.

A step at or below the last says that the run was rewound: validations from there on are forgotten,
and the steps count as taken again.
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
    """The numbers of the trigger.

    Args:
        sigmas: of the changes of ln validation loss, beyond which a look is worse.
        times: worse looks in a row that fire.
        window: changes between looks that trend and σ are taken over.
        least: changes below which no look is judged.
        floor: the least σ, in ln loss: 0.002 is 0.2 %.
        rate: how many times the rate of events before it the recent one must exceed.
        recent: steps taken that are recent.
        baseline: steps taken before these, at least, for there to be a rate to compare with.
        events: recent events, at least.
        chance: standard deviations of a Poisson count that they must be beyond the rate before; 0
            looks at the rates alone.
        harm: what counts as an event.

    Raises:
        UserError: a number is out of its range.
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
                "regression needs sigmas and floor above 0, chance ≥ 0, rate ≥ 1, 2 ≤ least ≤ window, and times, recent, "
                f"baseline and events ≥ 1, found {self!r}; the defaults are sound"
            )


class RegressionTrigger:
    """Says in words when a run has become worse than it was.

    Deterministic, in constant time and memory a step.
    """

    def __init__(self, config: Regression | None = None) -> None:
        self.config = config or Regression()
        # Step, ln loss, and by how much the looks before it are lifted; more than are used, so that
        # some stay after a rewind.
        self._looks: deque[tuple[int, float, float]] = deque(maxlen=4 * (self.config.window + 1))
        self._worse: list[tuple[int, float]] = []
        self._watch = HarmWatch(self.config.harm)
        self._recent: deque[int] = deque()  # steps taken when each recent event started
        self._earlier = 0  # events before these
        self._since = 0  # steps taken when it last fired: what is recent began after it

    def validated(self, step: int, loss: float) -> str:
        """One more validation of the run.

        Args:
            step: optimizer steps completed; at or below the last one's, the run was rewound.
            loss: clean validation loss, nats per token.

        Returns:
            Why it fires; empty where it does not.
        """
        self._go_back(step)
        if not 0 < loss < math.inf:
            return f"validation loss at step {step} is no finite number above 0: {loss}"
        value = math.log(loss)
        if len(self._looks) <= self.config.least:
            self._looks.append((step, value, 0.0))
            return ""
        expected, sigma = self._expected()
        if value <= expected + self.config.sigmas * sigma:
            self._worse.clear()
            self._looks.append((step, value, 0.0))
            return ""
        self._worse.append((step, value))
        if len(self._worse) < self.config.times:
            return ""
        rise = value - expected
        self._looks.append((step, value, rise))
        self._worse.clear()
        return (
            f"validation loss at step {step} is {100 * math.expm1(min(rise, 700)):.3g} % above what was expected: "
            f"{rise / sigma:.1f} σ, the {_ordinal(self.config.times)} look in a row beyond {self.config.sigmas:g} σ"
        )

    def windowed(self, telemetry: Iterable[Telemetry]) -> str:
        """The next steps of the run, in order.

        Returns:
            Why it fires; empty where it does not.
        """
        reason = ""
        for one in telemetry:
            change = self._watch.update(one.step, one.loss, one.probe_loss)
            if change.begun is not None:
                self._recent.append(change.begun.taken)
            reason = self._compared() or reason
        return reason

    @property
    def harm(self) -> float:
        """Nats by which the clean probe's newest loss is above its level; NaN where that is unknown."""
        return self._watch.above

    @property
    def rising(self) -> int | None:
        """The step of the look at which a rise began that may become an event; None: none has."""
        return self._watch.rising

    def _compared(self) -> str:
        """The rate of events of the last steps against that before them."""
        taken = self._watch.taken
        start = max(self._since, taken - self.config.recent)  # steps taken before what is recent
        while self._recent and self._recent[0] <= start:
            self._recent.popleft()
            self._earlier += 1
        count = len(self._recent)
        if count < self.config.events or start < self.config.baseline:
            return ""
        recent = count / self.config.recent
        before = self._earlier / start
        usual = before * self.config.recent
        if recent <= self.config.rate * before or count <= usual + self.config.chance * math.sqrt(
            usual
        ):
            return ""
        self._since = taken
        return (
            f"{count} instability events in the last {self.config.recent} steps, {1000 * recent:.1f} in 1000, "
            f"against {1000 * before:.1f} before them"
        )

    def _expected(self) -> tuple[float, float]:
        """What ln loss the trend leads to at the last look, and σ of the changes about it."""
        values: list[float] = []
        lift = 0.0
        for _, value, rise in list(self._looks)[: -self.config.window - 2 : -1]:
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
        while self._looks and self._looks[-1][0] >= step:
            self._looks.pop()

    def state_dict(self) -> dict[str, Any]:
        """As strict JSON values."""
        return {
            "looks": [list(look) for look in self._looks],
            "worse": [list(look) for look in self._worse],
            "harm": self._watch.state_dict(),
            "events": [list(self._recent), self._earlier, self._since],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._looks = deque(
            ((step, value, rise) for step, value, rise in state["looks"]), maxlen=self._looks.maxlen
        )
        self._worse = [(step, value) for step, value in state["worse"]]
        self._watch.load_state_dict(state["harm"])
        recent, self._earlier, self._since = state["events"]
        self._recent = deque(recent)


def _ordinal(count: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(count, f"{count}th")
