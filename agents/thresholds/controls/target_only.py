"""No draft: the target decodes alone. Speed-ups are measured against it."""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.decoding.traces import CostModel, Score, Trace


@dataclass(frozen=True, kw_only=True)
class TargetOnly:
    """Decode without a draft."""

    def replay(self, trace: Trace, costs: CostModel, /) -> Score:
        """Return the score on a trace: one token for each call of the target."""
        return Score(
            time_per_token=costs.target_only,
            speedup=1.0,
            acceptance=0.0,
            tokens_per_call=1.0,
            drafted_per_call=0.0,
            wasted=0.0,
            distance=0.0,
            tokens=trace.tokens.size,
        )
