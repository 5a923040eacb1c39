"""Schedules: draft lengths that follow the text, for the decoder and for replays on a trace.

    Decoder(target=target, drafter=drafter, schedule=Adaptive.of(costs), settings=Settings(k=16))

| schedule | ends a block |
|---|---|
| `Adaptive` | at the length that pays for the recent acceptance |
| `AcceptanceStop` | when a rejection has become likely, by a predictor (SpecDec++) |
| `Heuristic` | at a length that rises by 2 or falls by 1 (transformers) |
| `Confidence` | at a confidence that a ROC curve updates (transformers) |

All of them look at tokens that are verified whatever they are, so an exact rule stays exact.
"""

from trainenv.decoding.schedules.acceptance_stop import AcceptanceStop
from trainenv.decoding.schedules.adaptive import Adaptive
from trainenv.decoding.schedules.confidence import Confidence
from trainenv.decoding.schedules.contract import BlockState, Schedule
from trainenv.decoding.schedules.heuristic import Heuristic

__all__ = ["AcceptanceStop", "Adaptive", "BlockState", "Confidence", "Heuristic", "Schedule"]
