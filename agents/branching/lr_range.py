"""The start of a run as a learning-rate range test (Smith 2017, arXiv:1506.01186), read by the hypergradient (Baydin 2018).

The cosine of the gradient and the update before it says what a larger step would have done. While
the rate warms up it is above
0. Where a rate is too high for its run, its mean is down at 0 long before the rate is at its height, and what goes on rising
from there does harm that no later correction undoes. Where a rate is too low, it still is above 0 once the warm-up is over.

    too high at s  ⇔  mean cosine over the last W/5 steps ≤ 0                 W/4 ≤ s ≤ 5W/6
    draft: rate × ½ s/W too low at s   ⇔  mean cosine over the last W/2 to W steps > 2 errors
    3W/2 ≤ s ≤ 3W        draft: rate × 2

W are the steps of the warm-up; ½ s/W makes the height half of the rate at which the mean was down.
Both signs have other causes too, and see a step ahead. So they ask, and decide nothing: the other
rate becomes the run only if it is better at once (`trainenv.verification.rules.better`), which it
is not where the rate was right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from trainenv.types import Candidate, Intervention, Plan, Telemetry

# shares of the warm-up: a window, and where it may end
_TURN = 1 / 5
_FIRST = 1 / 4
_LAST = 5 / 6
# warm-ups: the least that is looked at after it, and where that ends
_SPAN = 1 / 2
_END = 3
_LEAST = 10  # steps of a warm-up, below which it says nothing
_SAMPLES = 4  # cosines below which their mean says nothing
_CERTAIN = 2.0  # standard errors above 0, as if steps were independent of one another
# the score of a draft that no model has seen: before doing nothing, by no more than a sign
_SIGN = -1e-9


class RangeTest:
    """Watches the start of a run.

    Args:
        warmup: W, steps over which the rate rises.

    Attributes:
        asks: factor on the learning rate that is worth a try; None: none is.
    """

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._since = 0  # step of the last draft
        self._cosines: list[tuple[int, float]] = []  # with the step of each
        self.asks: float | None = None

    def see(self, window: Sequence[Telemetry]) -> None:
        """Take in steps; those long after the warm-up say nothing any more."""
        for t in window:
            if self.asks is not None or self._warmup < _LEAST or t.step > _END * self._warmup:
                return
            if math.isfinite(t.hypergradient_cosine):
                self._cosines = [
                    (s, c) for s, c in self._cosines if t.step - self._warmup < s < t.step
                ]
                self._cosines.append((t.step, t.hypergradient_cosine))
                self.asks = self._higher(t.step) if t.step > self._warmup else self._lower(t.step)

    def _lower(self, step: int) -> float | None:
        if self._since or not _FIRST * self._warmup <= step <= _LAST * self._warmup:
            return None
        within = sum(s > step - _TURN * self._warmup for s, _ in self._cosines)
        recent = [c for _, c in self._cosines[-max(within, _SAMPLES) :]]
        return 0.5 * step / self._warmup if len(recent) >= _SAMPLES and fmean(recent) <= 0 else None

    def _higher(self, step: int) -> float | None:
        since = max(self._warmup, self._since, self._cosines[0][0] - 1)
        recent = [c for s, c in self._cosines if s > since]
        if step - since < _SPAN * self._warmup or len(recent) < _SAMPLES:
            return None
        return 2.0 if fmean(recent) > _CERTAIN * stdev(recent) / math.sqrt(len(recent)) else None

    def draft(self, step: int) -> Plan:
        """What it asks for at `step`, beside doing nothing.

        What was seen before says nothing of the rate from there on.
        """
        assert self.asks is not None
        other = Intervention(lr_scale=self.asks)
        candidates = (
            Candidate(interventions=(other,), score=_SIGN),
            Candidate(interventions=(Intervention(),), score=0.0),
        )
        self.asks = None
        self._since = step
        return Plan(planner="range-test", candidates=candidates)

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"cosines": self._cosines, "since": self._since, "asks": self.asks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self._cosines = [(int(step), float(cosine)) for step, cosine in state["cosines"]]
        self._since = state["since"]
        self.asks = state["asks"]
