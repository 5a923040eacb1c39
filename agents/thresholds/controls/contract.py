"""The contract of a control of the draft length."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from trainenv.decoding.traces import CostModel, Score, Trace


@runtime_checkable
class DraftControl(Protocol):
    """Rule that decides when the draft stops. A frozen dataclass."""

    def replay(self, trace: Trace, costs: CostModel, /) -> Score:
        """Return the expected score of decoding under this rule on a trace."""
        ...
