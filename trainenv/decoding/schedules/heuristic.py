"""The heuristic schedule of transformers: two tokens more after a full block, else one less.

`num_assistant_tokens_schedule="heuristic"` in transformers (`candidate_generator.py`): where all
drafted tokens matched, the next block has two more, else one less, at least one.

Deviation: the length is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainenv.tools.checks import whole


@dataclass(frozen=True, kw_only=True)
class Heuristic:
    """Raise or lower the draft length after each block.

    Args:
        start: Draft length of the first block.
        most: Greatest draft length.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    start: int = 5
    most: int = 16

    def __post_init__(self) -> None:
        whole("start", self.start, least=1)
        whole("most", self.most, least=1)

    def begin(self) -> HeuristicState:
        """Return the state at the start."""
        return HeuristicState(tokens=min(self.start, self.most), most=self.most)


@dataclass
class HeuristicState:
    """Draft length of the next block."""

    tokens: int
    most: int

    def ends(self, own: Sequence[float], top: Sequence[float], /) -> bool:
        return False

    def update(self, own: Sequence[float], accepted: int, complete: bool, /) -> None:
        if complete:
            self.tokens = min(self.tokens + 2, self.most)
        else:
            self.tokens = max(self.tokens - 1, 1)
