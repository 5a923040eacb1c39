"""Harm on the clean probe: when a rise begins that lasts, and when it is over.

One step at a time, from the past alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from trainenv.types import UserError

_KEPT = (
    256  # looks kept; of a line that starts further back than all of them the level is learned anew
)


@dataclass(frozen=True, kw_only=True)
class Harm:
    """What counts as harm.

    Args:
        rise: nats above the level from which a look is raised.
        hold: steps from the first raised look to the last that make an event of them, all looks
            between raised too.
        back: nats above the level from which on an event is over.
        window: looks whose median is the level.
        least: looks below which there is no level.

    Raises:
        UserError: a number is out of its range.
    """

    rise: float = 0.1
    hold: int = 8
    back: float = 0.02
    window: int = 8
    least: int = 4

    def __post_init__(self) -> None:
        if not (
            0 <= self.back < self.rise < math.inf
            and self.hold >= 0
            and 1 <= self.least <= self.window <= _KEPT
        ):
            raise UserError(
                f"harm needs 0 ≤ back < rise, hold ≥ 0 and 1 ≤ least ≤ window ≤ {_KEPT}, found {self!r}; the defaults are sound"
            )


class Onset(NamedTuple):
    """Where an event started.

    Attributes:
        step: of the first raised look, or the first lost step.
        taken: steps taken by then, this one included.
        level: of the probe loss before it, nats; inf where there was none yet: then the next look
            that is a number ends it.
        lost: whether it started with a loss that is no finite number.
    """

    step: int
    taken: int
    level: float
    lost: bool


class Change(NamedTuple):
    """What one step brought: an event that is certain from now on, events that are over, a rise cut short by a rewind."""

    begun: Onset | None = None
    ended: tuple[Onset, ...] = ()
    cut_short: bool = False


class HarmWatch:
    """Follows a run step by step, rewinds included: constant time a step on average, a few numbers an event that is open.

    A step that is not above the one before starts a new line: looks after where it starts are
    forgotten, events stay open.

    Attributes:
        taken: steps seen so far, rewound ones included.
    """

    def __init__(self, harm: Harm | None = None) -> None:
        self.harm = harm or Harm()
        self.taken = 0
        self._step = 0
        self._looks: deque[tuple[int, float]] = deque(
            maxlen=_KEPT
        )  # step and probe loss; what raised looks are judged by
        self._raised: list[
            tuple[int, int, float]
        ] = []  # step, steps taken and probe loss of looks that may become an event
        self._open: list[Onset] = []  # levels rise from one to the next, so the last ends first
        self._armed = True  # whether what rises now is a new rise

    @property
    def level(self) -> float:
        """Median of the last looks, nats; NaN while there are too few.

        Looks that may be the start of an event are not in it.
        """
        count = min(self.harm.window, len(self._looks))
        return (
            median(self._looks[-i][1] for i in range(1, count + 1))
            if count >= self.harm.least
            else math.nan
        )

    @property
    def above(self) -> float:
        """Nats by which the newest look is above the level, that before the first event still open; NaN while that is unknown."""
        newest = (
            self._raised[-1][2] if self._raised else self._looks[-1][1] if self._looks else math.nan
        )
        return newest - (self._open[0].level if self._open else self.level)

    @property
    def rising(self) -> int | None:
        """The step of the look at which a rise began that may become an event; None: none has."""
        return self._raised[0][0] if self._raised else None

    def update(self, step: int, loss: float, probe_loss: float) -> Change:
        """One more step of the run.

        Args:
            step: steps completed after it.
            loss: its training loss, nats.
            probe_loss: on the clean probe after it, nats; NaN where it was not measured.
        """
        cut_short = step <= self._step and self._go_back(step - 1)
        self._step = step
        self.taken += 1
        begun: Onset | None = None
        ended: tuple[Onset, ...] = ()
        if not math.isfinite(loss) or math.isinf(probe_loss):
            begun = self._begin(lost=True) if self._armed else None
        elif not math.isnan(probe_loss):
            ended = self._end(probe_loss)
            begun = self._look(probe_loss)
        return Change(begun, ended, cut_short)

    def _look(self, value: float) -> Onset | None:
        # Raised looks are not among those of the level: it is still that before the first of them.
        if not value >= self.level + self.harm.rise:
            self._armed = True
            self._settle()
        elif self._armed:
            self._raised.append((self._step, self.taken, value))
            return (
                self._begin(lost=False)
                if self._step - self._raised[0][0] >= self.harm.hold
                else None
            )
        self._looks.append((self._step, value))
        return None

    def _end(self, value: float) -> tuple[Onset, ...]:
        """Close the events whose level is reached.

        What was measured since they started does not stay in the level.
        """
        ended = []
        while self._open and value <= self._open[-1].level + self.harm.back:
            ended.append(self._open.pop())
        if ended:
            self._forget(min(onset.step for onset in ended) - 1)
        return tuple(ended)

    def _begin(self, *, lost: bool) -> Onset:
        step, taken = self._raised[0][:2] if self._raised else (self._step, self.taken)
        level = math.inf if math.isnan(self.level) else self.level
        if self._open:
            level = max(level, self._open[-1].level)
        onset = Onset(step, taken, level, lost)
        self._open.append(onset)
        self._armed = False
        self._settle()
        return onset

    def _settle(self) -> None:
        """Looks that were raised join the others: the level follows to where the run is now."""
        self._looks.extend((step, value) for step, _, value in self._raised)
        self._raised.clear()

    def _go_back(self, start: int) -> bool:
        """Forget what was measured after `start`; whether a rise is left behind with it, from its first look on."""
        self._forget(start)
        rising = bool(self._raised)
        self._raised = [look for look in self._raised if look[0] <= start]
        return rising and not self._raised

    def _forget(self, after: int) -> None:
        while self._looks and self._looks[-1][0] > after:
            self._looks.pop()

    def state_dict(self) -> dict[str, Any]:
        """As strict JSON values."""
        return {
            "counts": [self.taken, self._step, self._armed],
            "looks": [list(look) for look in self._looks],
            "raised": [list(look) for look in self._raised],
            "open": [
                [o.step, o.taken, o.level if math.isfinite(o.level) else None, o.lost]
                for o in self._open
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken, self._step, self._armed = state["counts"]
        self._looks = deque(((step, value) for step, value in state["looks"]), maxlen=_KEPT)
        self._raised = [(step, taken, value) for step, taken, value in state["raised"]]
        self._open = [
            Onset(step, taken, math.inf if level is None else level, lost)
            for step, taken, level, lost in state["open"]
        ]
