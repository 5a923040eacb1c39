"""Tasks: a model pair on a corpus, its measured costs, and the settings to choose.

A task has two parts of one trace: methods measure settings on the rows of one, and are evaluated on
those of the other. The score of settings is

    speed-up over the target alone · exp(−(distance to the target − allowed distance)₊ / 0.02)

so that a lossy rule hardly gains from giving away more exactness than is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from trainenv.agents.thresholds.contract import Axis, Floats, ThresholdSpace, Trial, TuningProblem
from trainenv.agents.thresholds.controls.contract import DraftControl
from trainenv.agents.thresholds.controls.fixed import FixedThresholds
from trainenv.agents.thresholds.controls.target_only import TargetOnly
from trainenv.decoding.clocks import CONTEXT as TRACED
from trainenv.decoding.clocks import TracedTask
from trainenv.decoding.contract import FALLBACK_RANGE, MAX_K, rollback_range
from trainenv.decoding.traces import RULES, CostModel, Score, Settings, Trace
from trainenv.tools.checks import choice, number, whole
from trainenv.types import UserError

EXCESS = 0.02
"""Distance beyond the allowed one that divides the score by e."""
CONTEXT = (*TRACED, "ln cost ratio", "slope of a target call", "overhead of a block")
"""Names of the context of a task."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodingTask:
    """A model pair on a corpus.

    Args:
        pair: Name of the model pair.
        corpus: Name of the corpus.
        trace: Rows that methods measure settings on.
        held_out: Rows that methods are evaluated on.
        costs: Times of the model pair.
        rule: Rule of verification, one of `trainenv.decoding.traces.RULES`.
        allowed_distance: Total-variation distance to the target that costs nothing.
        k: Greatest draft length.

    Raises:
        UserError: The draft length is out of range or deeper than the trace, or the two parts are
            traces of different models.
    """

    pair: str
    corpus: str
    trace: Trace = field(repr=False)
    held_out: Trace = field(repr=False)
    costs: CostModel = field(repr=False)
    rule: str = "exact"
    allowed_distance: float = 0.02
    k: int = MAX_K

    def __post_init__(self) -> None:
        whole("k", self.k, least=1)
        choice("rule", self.rule, RULES)
        number("allowed_distance", self.allowed_distance, least=0, most=1)
        most = min(MAX_K, self.trace.depth, self.held_out.depth)
        if self.k > most:
            raise UserError(
                f"k must be from 1 to {most}, the depth of the trace's blocks, found {self.k}; "
                "give a smaller k, or record a deeper trace"
            )
        one = self.trace.origin
        other = self.held_out.origin
        if (one.target_digest, one.draft_digest) != (other.target_digest, other.draft_digest):
            raise UserError(
                f"both parts of a task must be traces of one pair, found {one.target} with "
                f"{one.draft}, and {other.target} with {other.draft}; give the trace of this pair"
            )

    @property
    def name(self) -> str:
        """Pair and corpus."""
        return f"{self.pair} on {self.corpus}"

    @cached_property
    def space(self) -> ThresholdSpace:
        """The axes of the rule; see `space_of`."""
        return space_of(self.rule, self.k)

    def settings(self, values: Mapping[str, float]) -> Settings:
        """Return the settings of some values by name."""
        return Settings(
            fallback_threshold=values["fallback_threshold"],
            rollback_threshold=values.get("rollback_threshold", rollback_range(MAX_K)[1]),
            k=int(values["k"]),
        )

    def fixed(self, values: Mapping[str, float]) -> FixedThresholds:
        """Return the control that keeps some values by name."""
        return FixedThresholds(settings=self.settings(values), rule=self.rule)

    def score(self, values: Mapping[str, float], trace: Trace) -> Score:
        """Return the expected score of settings on a trace of this pair."""
        return self.fixed(values).replay(trace, self.costs)

    def worth(self, score: Score) -> float:
        """Return the speed-up, lowered where the distance exceeds the allowed one."""
        excess = max(0.0, score.distance - self.allowed_distance)
        return score.speedup * math.exp(-excess / EXCESS)

    def measure(self, values: Mapping[str, float]) -> dict[str, float]:
        """Measure settings on the rows for methods."""
        return self.replayed(self.fixed(values))

    def replayed(self, control: DraftControl) -> dict[str, float]:
        """Measure a control on the rows for methods."""
        return self._measured(control, self.trace)

    def evaluate(self, control: DraftControl) -> dict[str, float]:
        """Measure a control on the held-out rows."""
        return self._measured(control, self.held_out)

    def control(self, values: Mapping[str, float], score: float) -> DraftControl:
        """Return the control of some settings; no draft where their score is below 1.

        Args:
            values: Settings by name.
            score: Score that is expected of them.
        """
        if score < 1:
            return TargetOnly()
        return self.fixed(values)

    def problem(
        self,
        budget: int,
        *,
        known: Sequence[Trial] = (),
        record: Callable[[Trial], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> TuningProblem:
        """Return the problem of choosing settings; see `TuningProblem`."""
        return TuningProblem(
            self.measure, self.space, budget=budget, known=known, record=record, stop=stop
        )

    def context(self) -> Floats:
        """Return the features known before any settings are tried, [C], see `CONTEXT`."""
        return context_of(TracedTask(name=self.name, trace=self.trace, costs=self.costs))

    def _measured(self, control: DraftControl, trace: Trace) -> dict[str, float]:
        found = control.replay(trace, self.costs)
        return {
            "score": self.worth(found),
            "speedup": found.speedup,
            "acceptance": found.acceptance,
            "distance": found.distance,
            "time_per_token": found.time_per_token,
            "tokens_per_call": found.tokens_per_call,
        }


def space_of(rule: str, k: int) -> ThresholdSpace:
    """Return the axes of a rule with draft lengths up to k.

    The fallback threshold begins at 0, below `FALLBACK_RANGE`: where text is open, both models are
    unsure and yet agree, and even a threshold of 0.05 ends drafts that would be accepted.

    Only the lossy rule has a roll-back threshold. Its axis is logarithmic, because thresholds above
    about ten nats accept everything.
    """
    axes = [Axis(name="fallback_threshold", low=0.0, high=FALLBACK_RANGE[1])]
    if rule == "lossy":
        low, high = rollback_range(MAX_K)
        axes.append(Axis(name="rollback_threshold", low=low, high=high, log=True))
    axes.append(Axis(name="k", low=1, high=k, log=True, whole=True))
    return ThresholdSpace(axes=tuple(axes))


def context_of(task: TracedTask) -> Floats:
    """Return the features of a task known before any settings are tried, [C]; see `CONTEXT`."""
    known = task.context()
    costs = task.costs
    calls = costs.calls(np.array([1, 9]))
    return np.array(
        [
            *(known[name] for name in TRACED),
            float(np.log(max(costs.ratio, 1e-4))),
            float(calls[1] / calls[0] - 1),
            costs.block / costs.target_only,
        ]
    )


def split(trace: Trace, seed: int, share: float = 0.5) -> tuple[Trace, Trace]:
    """Split the rows of a trace at random.

    Args:
        trace: Trace with at least two rows.
        seed: Random seed.
        share: Share of the rows in the first part; each part has at least one.

    Returns:
        Rows to measure settings on, and rows to evaluate on.

    Raises:
        UserError: The trace has a single row.
    """
    if trace.rows < 2:
        raise UserError(
            f"a task needs a trace of at least 2 texts, found {trace.rows}; record more prompts"
        )
    order = np.random.default_rng(seed).permutation(trace.rows)
    cut = min(max(round(share * trace.rows), 1), trace.rows - 1)
    return trace.select(np.sort(order[:cut])), trace.select(np.sort(order[cut:]))
