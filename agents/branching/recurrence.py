"""Alarms that come back after every answer: the cause is then no bad batch and no high rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The cause looks structural after so many rewinds in a row, and so much of the learning rate taken
# off meanwhile (a rate that was 8 times too high would be mended by then), or after the most.
_IN_ROW = 4
_LOWERED = 1 / 8
_MOST = 10


@dataclass
class Recurrence:
    """Rewinds in a row that have not helped: each time the alarm came back where it was before.

    Attributes:
        alarms: Step that each rewind of the present row went back from.
        first_rate: Factor on the learning rate at the first of them.
        rate: Factor on the learning rate at the last of them.
    """

    alarms: list[int] = field(default_factory=list)
    first_rate: float = 1.0
    rate: float = 1.0

    def note(self, at: int, *, rate: float, within: int) -> None:
        """Take in a rewind.

        Args:
            at: Step that the run goes back from.
            rate: Factor on the learning rate there.
            within: Number of steps beyond the last such place within which it is the same alarm.
        """
        if not self.alarms or at > max(self.alarms) + within:
            self.alarms = []
            self.first_rate = rate
        self.alarms.append(at)
        self.rate = rate

    @property
    def looks_structural(self) -> bool:
        """True if further answers would not help either."""
        count = len(self.alarms)
        return count >= _MOST or (count >= _IN_ROW and self.rate <= _LOWERED * self.first_rate)

    @property
    def reason(self) -> str:
        """The finding and the remedy, for the record."""
        return (
            f"the alarm came back after each of {len(self.alarms)} answers, so the cause looks "
            "structural: check the model, its initialisation and precision, and the data pipeline; "
            "the learning rate is not lowered any further"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"alarms": self.alarms, "first_rate": self.first_rate, "rate": self.rate}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Recurrence:
        """Return the recurrence with a saved state; an empty one is that of an older version."""
        return cls(**state)
