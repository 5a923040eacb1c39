"""A draft length that follows the acceptance of the text: the best one for a running estimate.

Acceptance changes along a text: some passages are easy. After each block, the estimate α of the
chance that a drafted token is accepted moves towards what was seen, token by token:

    α ← m α + (1 − m) · [accepted]

and the next block has the length K with the most expected tokens a second (Leviathan et al. 2022,
arXiv:2211.17192):

    (1 − α^{K+1}) / (1 − α) / (time of a target call with K + 1 tokens + K · draft step + block)

A block also ends after the first token whose probability under the draft is below `threshold`, as
in transformers. The token is still verified, so an exact rule stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from trainenv.agents.thresholds.contract import Floats
from trainenv.agents.thresholds.controls.schedule_replay import replay_schedule
from trainenv.decoding.traces import CostModel, Score, Trace
from trainenv.tools.checks import number, whole

MEMORIES = (0.7, 0.85, 0.95)
THRESHOLDS = (0.0, 0.1, 0.25, 0.4)
_CLIP = (0.02, 0.98)  # bounds of the estimate


@dataclass(frozen=True, kw_only=True)
class AdaptiveSchedule:
    """Draft as many tokens as pay for the acceptance of late.

    Args:
        memory: Weight m of the estimate before each token, at least 0 and below 1.
        threshold: Probability of a drafted token below which the block ends after it, 0 to 1.
        start: Estimate at the start, 0 to 1.
        most: Greatest draft length.
        seed: Random seed of the replayed acceptances.
        draws: Number of replays with other acceptances, which are averaged.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    memory: float = 0.85
    threshold: float = 0.1
    start: float = 0.7
    most: int = 16
    seed: int = 0
    draws: int = 8

    def __post_init__(self) -> None:
        number("memory", self.memory, least=0, below=1)
        number("threshold", self.threshold, least=0, most=1)
        number("start", self.start, least=0, most=1)
        whole("most", self.most, least=1)
        whole("seed", self.seed, least=0)
        whole("draws", self.draws, least=1)

    def replay(self, trace: Trace, costs: CostModel, /) -> Score:
        """Return the score on a trace."""
        lengths = np.arange(1, self.most + 1)
        seconds = costs.calls(lengths + 1) + lengths * costs.draft_step + costs.block

        def begin() -> AdaptiveState:
            state = AdaptiveState(
                threshold=self.threshold,
                memory=self.memory,
                estimate=self.start,
                seconds=np.asarray(seconds, dtype=np.float64),
            )
            state.choose()
            return state

        return replay_schedule(begin, trace, costs, self.seed, self.draws)


@dataclass
class AdaptiveState:
    """Estimate of the acceptance, and the length that it asks for."""

    threshold: float
    memory: float
    estimate: float
    seconds: Floats = field(repr=False)
    tokens: int = 1

    def update(self, probabilities: list[float], accepted: int, complete: bool, /) -> None:
        for place in range(len(probabilities)):
            seen = float(place < accepted)
            self.estimate = self.memory * self.estimate + (1 - self.memory) * seen
        self.choose()

    def choose(self) -> None:
        """Choose the length with the most expected tokens a second."""
        chance = min(max(self.estimate, _CLIP[0]), _CLIP[1])
        lengths = np.arange(1, len(self.seconds) + 1)
        tokens = (1 - chance ** (lengths + 1)) / (1 - chance)
        self.tokens = int(lengths[int((tokens / self.seconds).argmax())])


def best_adaptive(tasks: Sequence[tuple[Trace, CostModel]], most: int) -> AdaptiveSchedule:
    """Return the schedule with the best mean speed on some tasks, as a share of the best of each.

    Args:
        tasks: Trace and costs of each task.
        most: Greatest draft length.
    """
    choices = [
        AdaptiveSchedule(memory=memory, threshold=threshold, most=most, draws=2)
        for memory, threshold in product(MEMORIES, THRESHOLDS)
    ]
    speeds = np.array(
        [[choice.replay(trace, costs).speedup for choice in choices] for trace, costs in tasks]
    )
    shares = speeds / speeds.max(axis=1, keepdims=True)
    return choices[int(shares.mean(axis=0).argmax())]
