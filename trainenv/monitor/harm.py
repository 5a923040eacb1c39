"""Harm on the clean probe: lasting rises of the probe loss, detected step by step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from trainenv.types import UserError

# Number of probes kept. After a rewind behind all of them the level is estimated anew.
_KEPT = 256
_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


@dataclass(frozen=True, kw_only=True)
class Harm:
    """The definition of harm: the probe loss is raised above its level for some steps.

    Args:
        rise: Height above the level from which a probe is raised, nats.
        hold: Steps from the first raised probe to the last that make an event, with all probes
            between them raised.
        back: Height above the level at which an event ends, nats.
        window: Number of probes whose median is the level.
        least: Number of probes below which there is no level.

    Raises:
        UserError: A number is out of range.
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
                f"harm needs 0 ≤ back < rise, hold ≥ 0 and 1 ≤ least ≤ window ≤ {_KEPT}, found "
                f"{self!r}; leave the numbers out to use the defaults"
            )


class Onset(NamedTuple):
    """The start of an event.

    Attributes:
        step: Step of the first raised probe, or of the first non-finite loss.
        taken: Number of steps taken by then, this one included.
        level: Level of the probe loss before it, nats; inf if there was none, so that the next
            finite probe ends the event.
        lost: True if it started with a non-finite loss.
    """

    step: int
    taken: int
    level: float
    lost: bool


class Change(NamedTuple):
    """The changes of one step.

    Attributes:
        begun: Start of an event that is certain from this step on.
        ended: Events that end.
        cut_short: True if a rewind removed a rise that had not lasted long enough.
    """

    begun: Onset | None = None
    ended: tuple[Onset, ...] = ()
    cut_short: bool = False


class HarmWatch:
    """A detector of harm that follows a run step by step, rewinds included.

    A step takes constant time on average; an open event takes a few numbers. A step that is not
    above the last one means that the run was rewound: the probes of the rewound steps are
    forgotten, and open events stay open.

    Attributes:
        harm: Definition of harm.
        taken: Number of steps seen, rewound ones included.
    """

    def __init__(self, harm: Harm | None = None) -> None:
        self.harm = harm or Harm()
        self.taken = 0
        self._step = 0
        # Step and probe loss of the probes that make the level.
        self._probes: deque[tuple[int, float]] = deque(maxlen=_KEPT)
        # Step, steps taken and probe loss of raised probes that may become an event.
        self._raised: list[tuple[int, int, float]] = []
        self._open: list[Onset] = []  # levels rise from one to the next, so the last ends first
        self._armed = True  # True if a raised probe now would be a new rise

    @property
    def level(self) -> float:
        """Median of the last probes, nats; NaN while there are too few.

        It leaves out raised probes that may become an event.
        """
        count = min(self.harm.window, len(self._probes))
        if count < self.harm.least:
            return math.nan
        return median(self._probes[-i][1] for i in range(1, count + 1))

    @property
    def noise(self) -> float:
        """Standard deviation of a probe about its trend, nats; NaN while there are too few.

        It is 1.48 times the median change from one of the last probes to the next, over √2: the
        trend and single outliers hardly matter.
        """
        count = min(self.harm.window, len(self._probes))
        if count < self.harm.least:
            return math.nan
        last = [self._probes[-i][1] for i in range(1, count + 1)]
        return _MAD * median(abs(a - b) for a, b in pairwise(last)) / math.sqrt(2)

    @property
    def above(self) -> float:
        """Height of the last probe above the level, nats; NaN while it is unknown.

        With open events the level is that before the first of them.
        """
        newest = math.nan
        if self._raised:
            newest = self._raised[-1][2]
        elif self._probes:
            newest = self._probes[-1][1]
        if self._open:
            return newest - self._open[0].level
        return newest - self.level

    @property
    def rising(self) -> int | None:
        """Step of the first raised probe of the present rise; None without one.

        The rise may be an event already, or become one.
        """
        if self._raised:
            return self._raised[0][0]
        if self._open:
            return self._open[-1].step
        return None

    def update(self, step: int, loss: float, probe_loss: float) -> Change:
        """Take in one more step and return its changes.

        Args:
            step: Number of completed steps, this one included.
            loss: Training loss of the step, nats.
            probe_loss: Loss on the clean probe after the step, nats; NaN if it was not measured.
        """
        cut_short = step <= self._step and self._go_back(step - 1)
        self._step = step
        self.taken += 1
        begun: Onset | None = None
        ended: tuple[Onset, ...] = ()
        if not math.isfinite(loss) or math.isinf(probe_loss):
            if self._armed:
                begun = self._begin(lost=True)
        elif not math.isnan(probe_loss):
            ended = self._end(probe_loss)
            begun = self._probe(probe_loss)
        return Change(begun, ended, cut_short)

    def _probe(self, value: float) -> Onset | None:
        """Take in a probe; return the event that it makes certain, if any."""
        # Raised probes are not in the level, which is still that before the first of them.
        if not value >= self.level + self.harm.rise:
            self._armed = True
            self._settle()
        elif self._armed:
            self._raised.append((self._step, self.taken, value))
            if self._step - self._raised[0][0] >= self.harm.hold:
                return self._begin(lost=False)
            return None
        self._probes.append((self._step, value))
        return None

    def _end(self, value: float) -> tuple[Onset, ...]:
        """End the events whose level is reached, and remove their probes from the level."""
        ended = []
        while self._open and value <= self._open[-1].level + self.harm.back:
            ended.append(self._open.pop())
        if ended:
            self._forget(min(onset.step for onset in ended) - 1)
        return tuple(ended)

    def _begin(self, *, lost: bool) -> Onset:
        """Open an event that starts at the first raised probe, or at this step."""
        step = self._step
        taken = self.taken
        if self._raised:
            step, taken, _ = self._raised[0]
        level = self.level
        if math.isnan(level):
            level = math.inf
        if self._open:
            level = max(level, self._open[-1].level)
        onset = Onset(step, taken, level, lost)
        self._open.append(onset)
        self._armed = False
        self._settle()
        return onset

    def _settle(self) -> None:
        """Add the raised probes to the others, so that the level follows the run."""
        self._probes.extend((step, value) for step, _, value in self._raised)
        self._raised.clear()

    def _go_back(self, start: int) -> bool:
        """Forget the probes after step `start`; return True if that removes a whole rise."""
        self._forget(start)
        rising = bool(self._raised)
        self._raised = [probe for probe in self._raised if probe[0] <= start]
        return rising and not self._raised

    def _forget(self, after: int) -> None:
        while self._probes and self._probes[-1][0] > after:
            self._probes.pop()

    def state_dict(self) -> dict[str, Any]:
        """Return strict JSON values."""
        return {
            "counts": [self.taken, self._step, self._armed],
            "looks": [list(probe) for probe in self._probes],
            "raised": [list(probe) for probe in self._raised],
            "open": [
                [o.step, o.taken, o.level if math.isfinite(o.level) else None, o.lost]
                for o in self._open
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned."""
        self.taken, self._step, self._armed = state["counts"]
        self._probes = deque(((step, value) for step, value in state["looks"]), maxlen=_KEPT)
        self._raised = [(step, taken, value) for step, taken, value in state["raised"]]
        self._open = [
            Onset(step, taken, math.inf if level is None else level, lost)
            for step, taken, level, lost in state["open"]
        ]
