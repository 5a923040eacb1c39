"""A draft length that follows the acceptance of the text: the best one for a running estimate.

Acceptance changes along a text: some passages are easy. After each block, the estimate α of the
chance that a drafted token is accepted moves towards what was seen, token by token:

    α ← m α + (1 − m) · [accepted]

and the next block has the length K with the most expected tokens a second (Leviathan et al. 2022,
arXiv:2211.17192):

    (1 − α^{K+1}) / (1 − α) / (seconds of a block with K drafted tokens)

A block also ends after the first token whose probability under the draft is below `threshold`, as
in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainenv.decoding.contract import MAX_K
from trainenv.decoding.traces import CostModel
from trainenv.decoding.traces.trace import Floats
from trainenv.tools.checks import number
from trainenv.types import UserError

_CLIP = (0.02, 0.98)  # bounds of the estimate


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Draft as many tokens as pay for the recent acceptance.

    Args:
        seconds: Time of a block with 1, 2, … drafted tokens, from 1 to 16 of them; only their
            ratios count.
        memory: Weight m of the estimate before each token, at least 0 and below 1.
        threshold: Probability of a drafted token below which the block ends after it, 0 to 1.
        start: Estimate at the start, 0 to 1.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    seconds: tuple[float, ...] = field(repr=False)
    memory: float = 0.98
    threshold: float = 0.0
    start: float = 0.7

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", tuple(self.seconds))
        if not 1 <= len(self.seconds) <= MAX_K:
            raise UserError(
                f"seconds must hold 1 to {MAX_K} times, one for each number of drafted tokens, "
                f"found {len(self.seconds)}; give the times of a cost model"
            )
        for one in self.seconds:
            number("each of seconds", one, above=0)
        number("memory", self.memory, least=0, below=1)
        number("threshold", self.threshold, least=0, most=1)
        number("start", self.start, least=0, most=1)

    @classmethod
    def of(
        cls,
        costs: CostModel,
        *,
        most: int = MAX_K,
        memory: float = 0.98,
        threshold: float = 0.0,
        start: float = 0.7,
    ) -> Adaptive:
        """Return the schedule for the times of a model pair.

        Args:
            costs: Times of the model pair.
            most: Greatest draft length.
            memory: Weight of the estimate before each token.
            threshold: Probability of a drafted token below which the block ends after it.
            start: Estimate at the start.
        """
        lengths = np.arange(1, most + 1)
        seconds = (
            costs.calls(lengths + 1)
            + lengths * costs.draft_step
            + (costs.block + costs.drafting + costs.judging)
        )
        return cls(seconds=tuple(seconds.tolist()), memory=memory, threshold=threshold, start=start)

    def begin(self) -> AdaptiveState:
        """Return the state at the start."""
        state = AdaptiveState(
            threshold=self.threshold,
            memory=self.memory,
            estimate=self.start,
            seconds=np.array(self.seconds, np.float64),
        )
        state.choose()
        return state


@dataclass
class AdaptiveState:
    """Estimate of the acceptance, and the length that it asks for."""

    threshold: float
    memory: float
    estimate: float
    seconds: Floats = field(repr=False)
    tokens: int = 1

    def ends(self, own: Sequence[float], top: Sequence[float], /) -> bool:
        return own[-1] < self.threshold

    def update(self, own: Sequence[float], accepted: int, complete: bool, /) -> None:
        for place in range(len(own)):
            seen = float(place < accepted)
            self.estimate = self.memory * self.estimate + (1 - self.memory) * seen
        self.choose()

    def choose(self) -> None:
        """Choose the length with the most expected tokens a second."""
        chance = min(max(self.estimate, _CLIP[0]), _CLIP[1])
        lengths = np.arange(1, len(self.seconds) + 1)
        tokens = (1 - chance ** (lengths + 1)) / (1 - chance)
        self.tokens = int(lengths[int((tokens / self.seconds).argmax())])
