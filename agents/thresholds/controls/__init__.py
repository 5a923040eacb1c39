"""Controls of the draft length: each is replayed on a trace.

    FixedThresholds(settings=Settings(fallback_threshold=0.3)).replay(trace, costs).speedup

| control | stops the draft |
|---|---|
| `FixedThresholds` | at two thresholds and a length that stay as they are |
| `TargetOnly` | always: the target decodes alone |
| `ReplayedSchedule` | where a schedule of `trainenv.decoding.schedules` ends the block |
| `ReplayedStop` | where SpecDec++ ends the block, in expectation |
"""

from trainenv.agents.thresholds.controls.contract import DraftControl
from trainenv.agents.thresholds.controls.fixed import FixedThresholds
from trainenv.agents.thresholds.controls.schedule_replay import ReplayedSchedule
from trainenv.agents.thresholds.controls.stop_replay import ReplayedStop
from trainenv.agents.thresholds.controls.target_only import TargetOnly

__all__ = [
    "DraftControl",
    "FixedThresholds",
    "ReplayedSchedule",
    "ReplayedStop",
    "TargetOnly",
]
