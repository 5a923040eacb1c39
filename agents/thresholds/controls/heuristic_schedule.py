"""The heuristic schedule of transformers: two tokens more after a full block, else one less.

`num_assistant_tokens_schedule="heuristic"` in transformers (`candidate_generator.py`): where all
drafted tokens matched, the next block has two more, else one less, at least one.

Deviation: the length is bounded by the depth of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.agents.thresholds.controls.schedule_replay import replay_schedule
from trainenv.decoding.traces import CostModel, Score, Trace
from trainenv.tools.checks import whole


@dataclass(frozen=True, kw_only=True)
class HeuristicSchedule:
    """Raise or lower the draft length after each block.

    Args:
        start: Draft length of the first block.
        most: Greatest draft length.
        seed: Random seed of the replayed acceptances.
        draws: Number of replays with other acceptances, which are averaged.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    start: int = 5
    most: int = 16
    seed: int = 0
    draws: int = 8

    def __post_init__(self) -> None:
        whole("start", self.start, least=1)
        whole("most", self.most, least=1)
        whole("seed", self.seed, least=0)
        whole("draws", self.draws, least=1)

    def replay(self, trace: Trace, costs: CostModel, /) -> Score:
        """Return the score on a trace."""

        def begin() -> HeuristicState:
            return HeuristicState(tokens=min(self.start, self.most), most=self.most)

        return replay_schedule(begin, trace, costs, self.seed, self.draws)


@dataclass
class HeuristicState:
    """Draft length of the next block."""

    tokens: int
    most: int
    threshold: float = 0.0

    def update(self, probabilities: list[float], accepted: int, complete: bool, /) -> None:
        if complete:
            self.tokens = min(self.tokens + 2, self.most)
        else:
            self.tokens = max(self.tokens - 1, 1)
