"""Controls of the draft length: each decides when the draft stops, and is replayed on a trace.

    FixedThresholds(settings=Settings(fallback_threshold=0.3)).replay(trace, costs).speedup

| control | stops the draft |
|---|---|
| `FixedThresholds` | at two thresholds and a length that stay as they are |
| `TargetOnly` | always: the target decodes alone |
| `AcceptanceStop` | when a rejection has become likely, by a predictor (SpecDec++) |
| `AdaptiveSchedule` | at the length that pays for the acceptance of late |
| `HeuristicSchedule` | at a length that rises by 2 or falls by 1 (transformers) |
| `ConfidenceSchedule` | at a confidence that a ROC curve updates (transformers) |
"""

from trainenv.agents.thresholds.controls.acceptance_stop import AcceptanceStop
from trainenv.agents.thresholds.controls.adaptive_schedule import AdaptiveSchedule
from trainenv.agents.thresholds.controls.confidence_schedule import ConfidenceSchedule
from trainenv.agents.thresholds.controls.contract import DraftControl
from trainenv.agents.thresholds.controls.fixed import FixedThresholds
from trainenv.agents.thresholds.controls.heuristic_schedule import HeuristicSchedule
from trainenv.agents.thresholds.controls.target_only import TargetOnly

__all__ = [
    "AcceptanceStop",
    "AdaptiveSchedule",
    "ConfidenceSchedule",
    "DraftControl",
    "FixedThresholds",
    "HeuristicSchedule",
    "TargetOnly",
]
