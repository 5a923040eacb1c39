"""Choices of a search or an evaluation: methods, budget, rule and draft length."""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.agents.thresholds.sources import Source
from trainenv.agents.thresholds.strategies import STRATEGIES
from trainenv.agents.thresholds.tasks import DecodingTask
from trainenv.decoding.contract import MAX_K
from trainenv.decoding.traces import RULES, Trace
from trainenv.tools.checks import choice, number, whole
from trainenv.types import UserError

GENERAL = ("fixed", "general", "ppo policy", "recommend", "adaptive", "shuffled")
"""Names of general policies, see `trainenv.agents.thresholds.evaluation`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Choices of an evaluation.

    Args:
        methods: Names of strategies.
        general: Names of general policies, of `GENERAL`.
        budget: Number of evaluations that each search may spend on a task.
        seeds: Number of splits of the texts.
        rule: Rule of verification.
        allowed_distance: Total-variation distance to the target that costs nothing.
        k: Greatest draft length.
        context_texts: Number of texts that general policies see of a task.
        moves: Number of moves that the policy of PPO learns from.

    Raises:
        UserError: A name is unknown or a number is out of range.
    """

    methods: tuple[str, ...] = tuple(STRATEGIES)
    general: tuple[str, ...] = GENERAL
    budget: int = 64
    seeds: int = 3
    rule: str = "exact"
    allowed_distance: float = 0.02
    k: int = MAX_K
    context_texts: int = 4
    moves: int = 8000

    def __post_init__(self) -> None:
        for name in self.methods:
            choice("method", name, STRATEGIES)
        for name in self.general:
            choice("general policy", name, GENERAL)
        for name in ("budget", "seeds", "context_texts", "moves", "k"):
            whole(name, getattr(self, name), least=1)
        choice("rule", self.rule, RULES)
        number("allowed_distance", self.allowed_distance, least=0, most=1)
        if self.k > MAX_K:
            raise UserError(
                f"k must be from 1 to {MAX_K}, found {self.k}; draft fewer tokens a call"
            )

    def task(self, source: Source, trace: Trace, held_out: Trace) -> DecodingTask:
        """Return the task of a source with given texts."""
        return DecodingTask(
            pair=source.pair,
            corpus=source.corpus,
            trace=trace,
            held_out=held_out,
            costs=source.costs,
            rule=self.rule,
            allowed_distance=self.allowed_distance,
            k=self.k,
        )
