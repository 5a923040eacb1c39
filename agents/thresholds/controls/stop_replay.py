"""Replay of SpecDec++, whose stop depends on the tokens of its block alone: expected values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.agents.thresholds.controls.windows import text_windows, window_blocks
from trainenv.decoding.schedules import AcceptanceStop
from trainenv.decoding.schedules.acceptance_stop import features
from trainenv.decoding.traces import CostModel, Score, Trace, score
from trainenv.decoding.traces.replay import check_depth


@dataclass(frozen=True, kw_only=True)
class ReplayedStop:
    """Decode with SpecDec++ and the exact rule of verification.

    Args:
        stop: Predictor, threshold and greatest length.
    """

    stop: AcceptanceStop

    def replay(self, trace: Trace, costs: CostModel, /) -> Score:
        """Return the expected score on a trace."""
        check_depth(trace, self.stop.k)
        depth = trace.depth
        drafted = self.stop.lengths(features(trace.block_q, trace.block_top))
        top = np.log(np.maximum(trace.block_top[..., 0], 1e-8))
        along = features(text_windows(trace.q_text, depth), np.exp(text_windows(top, depth)))
        return score(window_blocks(trace, drafted, self.stop.lengths(along)), costs)
