"""The warm-up read as a learning-rate range test (Smith 2017, arXiv:1506.01186), by the hypergradient (Baydin et al. 2018).

While the rate rises, the gradient at first agrees with the update before it: a larger step would have done better. Where a rate
is too high for its run, the mean cosine of the two is down at 0 long before the rate is at its height. What goes on rising from
there does harm that no later correction undoes, so this is the moment to ask:

    turned at s  ⇔  mean cosine over the last W/5 steps ≤ 0,  W/4 ≤ s ≤ 5W/6          W: steps of the warm-up
    draft        :  learning rate × ½ s/W, half of the rate at which it turned

A long warm-up outlasts the steep part of a run at any rate, so the sign asks and decides nothing: the lower rate becomes the
run only if it is better at once (`trainenv.wrappers.rules.better`), which it is not where the rate was right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.types import Candidate, Intervention, Plan, Telemetry

_WINDOW, _FIRST, _LAST = 1 / 5, 1 / 4, 5 / 6  # shares of the warm-up
_SAMPLES = 4  # cosines below which their mean says nothing
_SIGN = -1e-9  # the score of a draft that no model has seen: before doing nothing, by no more than a sign


class RangeTest:
    """Watches a warm-up.

    Args:
        warmup: W, steps over which the rate rises.

    Attributes:
        turned: step at which the gradient turned against the updates; None: it did not, or not in time.
    """

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._cosines: list[tuple[int, float]] = []  # step and cosine, of the window
        self.turned: int | None = None

    def see(self, window: Sequence[Telemetry]) -> None:
        """Take in steps; those after the warm-up say nothing any more."""
        for t in window:
            if self.turned is not None or t.step > _LAST * self._warmup:
                return
            if math.isfinite(t.hypergradient_cosine):
                self._cosines = [(s, c) for s, c in self._cosines if s > t.step - _WINDOW * self._warmup and s < t.step]
                self._cosines.append((t.step, t.hypergradient_cosine))
                if t.step >= _FIRST * self._warmup and len(self._cosines) >= _SAMPLES and sum(c for _, c in self._cosines) <= 0:
                    self.turned = t.step

    def draft(self) -> Plan:
        """Half of the rate at which it turned, beside doing nothing."""
        assert self.turned is not None
        lower = Intervention(lr_scale=0.5 * self.turned / self._warmup)
        candidates = Candidate(interventions=(lower,), score=_SIGN), Candidate(interventions=(Intervention(),), score=0.0)
        return Plan(planner="range-test", candidates=candidates)

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"cosines": self._cosines, "turned": self.turned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self._cosines = [(int(step), float(cosine)) for step, cosine in state["cosines"]]
        self.turned = state["turned"]
