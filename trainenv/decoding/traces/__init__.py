"""Traces of model pairs, and the deterministic clock that scores thresholds on them.

    trace = synthetic_trace()
    costs = CostModel.of_ratio(0.1)
    replay(trace, Settings(fallback_threshold=0.3, k=8), costs).speedup

`Trace` keeps what the two models think of texts, `CostModel` the seconds of their calls, and
`replay` returns the expected `Score` of any settings in milliseconds, without the models.
"""

from __future__ import annotations

from trainenv.decoding.contract import Settings
from trainenv.decoding.traces.costs import CostModel
from trainenv.decoding.traces.file import load_costs, load_trace, save_costs, save_trace
from trainenv.decoding.traces.replay import (
    RULES,
    Blocks,
    Score,
    blocks_of,
    exact_blocks,
    replay,
    score,
    sweep,
)
from trainenv.decoding.traces.synthetic import SyntheticPair, synthetic_trace
from trainenv.decoding.traces.trace import Origin, Trace, overlap_bounds

__all__ = [
    "RULES",
    "Blocks",
    "CostModel",
    "Origin",
    "Score",
    "Settings",
    "SyntheticPair",
    "Trace",
    "blocks_of",
    "exact_blocks",
    "load_costs",
    "load_trace",
    "overlap_bounds",
    "replay",
    "save_costs",
    "save_trace",
    "score",
    "sweep",
    "synthetic_trace",
]
