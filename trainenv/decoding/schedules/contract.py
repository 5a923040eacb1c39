"""The contract of a schedule: when a block of drafted tokens ends, and what it learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class BlockState(Protocol):
    """State of a schedule for one row.

    Attributes:
        tokens: Most tokens of the next block, at least 1.
    """

    tokens: int

    def ends(self, own: Sequence[float], top: Sequence[float], /) -> bool:
        """Return True if the block ends after its newest token, which is verified too.

        Args:
            own: Probability of each token of the block under the distribution that it was drawn
                from; of the softmax at temperature 1 if it was not drawn at random.
            top: Largest probability of the draft's softmax at temperature 1 before each token.
        """
        ...

    def update(self, own: Sequence[float], accepted: int, complete: bool, /) -> None:
        """Learn from a verified block.

        Args:
            own: Probabilities, under the draft, of the tokens that were accepted and of the first
                one that was rejected.
            accepted: Number of accepted tokens.
            complete: True if no token was rejected.
        """
        ...


@runtime_checkable
class Schedule(Protocol):
    """Rule for the length of drafts. A frozen dataclass."""

    def begin(self) -> BlockState:
        """Return the state of a row at its start."""
        ...
