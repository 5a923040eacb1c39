"""Thresholds and a draft length that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.decoding.traces import CostModel, Score, Settings, Trace, replay


@dataclass(frozen=True, kw_only=True)
class FixedThresholds:
    """Decode with the same settings all the time.

    Args:
        settings: Thresholds and draft length.
        rule: Rule of verification, one of `trainenv.decoding.traces.RULES`.
    """

    settings: Settings
    rule: str = "exact"

    def replay(self, trace: Trace, costs: CostModel, /) -> Score:
        """Return the expected score on a trace."""
        return replay(trace, self.settings, costs, self.rule)
