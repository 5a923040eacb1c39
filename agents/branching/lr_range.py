"""Learning-rate range test (Smith 2017, arXiv:1506.01186), read by the hypergradient (Baydin 2018).

The cosine between the gradient and the update before it tells what a larger step would have done.
While the learning rate warms up, it is above 0. If the rate is too high for the run, the mean
cosine falls to 0 long before the peak of the rate, and the rise from there on does harm that no
later correction undoes. If the rate is too low, the cosine is still above 0 after the warm-up.

    too high at step s  ⇔  mean cosine over the last W/5 steps ≤ 0             W/4 ≤ s ≤ 5W/6
                           candidate: rate × ½ s/W
    too low at step s   ⇔  mean cosine over the last W/2 to W steps > 2 standard errors
                           candidate: rate × 2                                 3W/2 ≤ s ≤ 3W

W is the number of warm-up steps. The factor ½ s/W makes the peak half of the rate at which the mean
reached 0. Both signs have other causes too, and they look one step ahead. So they only propose: the
other rate becomes the run if it is better at once (`trainenv.verification.rules.better`), which it
is not where the rate was right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from trainenv.types import Candidate, Intervention, Plan, Telemetry

# Shares of the warm-up: length of the window, first and last step at which it may end.
_WINDOW = 1 / 5
_FIRST = 1 / 4
_LAST = 5 / 6
# Multiples of the warm-up: shortest window after it, and the end of the test.
_SPAN = 1 / 2
_END = 3
SHORTEST = 10  # steps of the shortest warm-up that is tested
_SAMPLES = 4  # cosines of the smallest sample whose mean counts
_CERTAIN = 2.0  # standard errors above 0, as if steps were independent
# Score of a candidate that no model has seen: only just better than the run left alone.
_UNSEEN = -1e-9


class RangeTest:
    """Watches the start of a run and proposes another learning rate.

    Args:
        warmup: W, the number of steps over which the rate rises.

    Attributes:
        factor: Factor on the learning rate that is worth a trial; None without one.
    """

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._since = 0  # step of the last proposal
        self._cosines: list[tuple[int, float]] = []  # each with its step
        self.factor: float | None = None

    def observe(self, window: Sequence[Telemetry]) -> None:
        """Take in steps; those long after the warm-up are left out."""
        for t in window:
            if self.factor is not None or self._warmup < SHORTEST or t.step > _END * self._warmup:
                return
            if math.isfinite(t.hypergradient_cosine):
                oldest = t.step - self._warmup
                self._cosines = [(s, c) for s, c in self._cosines if oldest < s < t.step]
                self._cosines.append((t.step, t.hypergradient_cosine))
                if t.step > self._warmup:
                    self.factor = self._higher(t.step)
                else:
                    self.factor = self._lower(t.step)

    def _lower(self, step: int) -> float | None:
        """Return a factor below 1 if the rate is too high."""
        if self._since or not _FIRST * self._warmup <= step <= _LAST * self._warmup:
            return None
        within = sum(s > step - _WINDOW * self._warmup for s, _ in self._cosines)
        recent = [c for _, c in self._cosines[-max(within, _SAMPLES) :]]
        if len(recent) < _SAMPLES or fmean(recent) > 0:
            return None
        return 0.5 * step / self._warmup

    def _higher(self, step: int) -> float | None:
        """Return 2 if the rate is too low."""
        since = max(self._warmup, self._since, self._cosines[0][0] - 1)
        recent = [c for s, c in self._cosines if s > since]
        if step - since < _SPAN * self._warmup or len(recent) < _SAMPLES:
            return None
        if fmean(recent) > _CERTAIN * stdev(recent) / math.sqrt(len(recent)):
            return 2.0
        return None

    def propose(self, step: int) -> Plan:
        """Return the other rate and the run left alone as a plan.

        Cosines before `step` no longer count: they are not of the rate from there on.
        """
        assert self.factor is not None
        other = Intervention(lr_scale=self.factor)
        candidates = (
            Candidate(interventions=(other,), score=_UNSEEN),
            Candidate(interventions=(Intervention(),), score=0.0),
        )
        self.factor = None
        self._since = step
        return Plan(planner="range-test", candidates=candidates)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"cosines": self._cosines, "since": self._since, "asks": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on the state that `state_dict` returned."""
        self._cosines = [(int(step), float(cosine)) for step, cosine in state["cosines"]]
        self._since = state["since"]
        self.factor = state["asks"]
