"""Two clocks for settings of a decoding task: the cost model on a trace, and the decoder itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from trainenv.decoding.contract import Settings
from trainenv.decoding.traces import CostModel, Score, Trace, replay
from trainenv.decoding.traces.trace import Floats

CONTEXT = (
    "acceptance",
    "draft_entropy",
    "target_entropy",
    "draft_confidence",
    "cost_ratio",
    "prompt_repeats",
)
"""Names of what is known of a task before any settings are tried, each from 0 to 1."""
_NATS = 10.0  # entropy that counts as 1


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedTask:
    """A model pair on a corpus: its trace and its costs.

    Args:
        name: Name of the task.
        trace: Trace of the pair on the corpus.
        costs: Times of the pair.
    """

    name: str
    trace: Trace = field(repr=False)
    costs: CostModel = field(repr=False)

    def context(self) -> dict[str, float]:
        """Return the features of `CONTEXT`, each clipped to 0 … 1."""
        trace = self.trace
        found = {
            "acceptance": trace.acceptance,
            "draft_entropy": _mean(trace.entropy) / _NATS,
            "target_entropy": _mean(trace.p_entropy) / _NATS,
            "draft_confidence": _mean(trace.block_top[..., 0]),
            "cost_ratio": self.costs.ratio,
            "prompt_repeats": _mean(trace.prompt_repeats),
        }
        return {name: min(max(found[name], 0.0), 1.0) for name in CONTEXT}


class Clock(Protocol):
    """Source of scores; the environment of decoding meets clocks only through it."""

    def score(self, task: TracedTask, settings: Settings, rule: str, /) -> Score:
        """Return the score of settings under a rule on a task."""
        ...


@dataclass(frozen=True, kw_only=True)
class CostClock:
    """Scores of the cost model: deterministic, in milliseconds, without the models."""

    def score(self, task: TracedTask, settings: Settings, rule: str, /) -> Score:
        """Return the score of settings replayed on the task's trace."""
        return replay(task.trace, settings, task.costs, rule)


def _mean(values: Floats) -> float:
    return float(values.mean(dtype="float64"))
