"""Harm, judged on the clean probe: the same few clean sequences at every look, so that a corrupt batch cannot pass for harm."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

from trainenv.types import Telemetry

_LOOKS, _RECENT = 8, 2


class CleanProbe:
    """How far the loss on the clean probe is above its level before: the median of eight looks, the newest two left out."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, float]] = deque(maxlen=_LOOKS + _RECENT)

    def see(self, window: Sequence[Telemetry]) -> None:
        """Take in steps; most have no look."""
        self._looks.extend((t.step, t.probe_loss) for t in window if not math.isnan(t.probe_loss))

    def back_to(self, step: int) -> None:
        """Forget what came after a step that the run went back to."""
        self._looks = deque([look for look in self._looks if look[0] <= step], maxlen=self._looks.maxlen)

    @property
    def harm(self) -> float:
        """Nats above the level; the highest of the newest two looks counts. NaN while there is too little to tell."""
        losses = [loss for _, loss in self._looks]
        before, recent = losses[:-_RECENT], losses[-_RECENT:]
        if len(before) < _RECENT:
            return math.nan
        return max(recent) - median(before) if all(map(math.isfinite, losses)) else math.inf

    def state_dict(self) -> list[list[Any]]:
        return [[step, loss if math.isfinite(loss) else None] for step, loss in self._looks]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        looks = [(int(step), math.inf if loss is None else float(loss)) for step, loss in state]
        self._looks = deque(looks, maxlen=self._looks.maxlen)
