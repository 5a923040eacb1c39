"""Futures that were trained already, so that longer or similar ones cost only their new steps."""

from __future__ import annotations

from dataclasses import replace

from trainenv.rollouts.future import Future, InterventionSequence
from trainenv.types import Measure


class FutureCache:
    """The futures of one start, and their losses after a cool-down or at the end of the run.

    A sequence has one intervention for each decision before its last step. A `draw` is a number for
    an order of the data to come.
    """

    def __init__(self) -> None:
        self._futures: dict[int, list[Future]] = {}
        self._ends: dict[tuple[InterventionSequence, int, int, Measure], float] = {}

    def longest(self, sequence: InterventionSequence, steps: int, draw: int) -> Future:
        """Return the longest future, up to `steps` steps, that a sequence begins with.

        It has no steps if there is none.
        """
        fitting = [
            future
            for future in self._futures.get(draw, ())
            if future.steps <= steps and future.applied == sequence[: len(future.applied)]
        ]
        return max(fitting, key=lambda future: (future.steps, future.ended), default=Future())

    def add(self, future: Future, draw: int) -> None:
        """Keep a future."""
        self._futures.setdefault(draw, []).append(future)

    def add_error(self, sequence: InterventionSequence, steps: int, draw: int, error: str) -> None:
        """Keep the error that ended a future at the step where its training was to continue."""
        self.add(replace(self.longest(sequence, steps, draw), applied=sequence, error=error), draw)

    def end(
        self, sequence: InterventionSequence, steps: int, draw: int, measure: Measure
    ) -> float | None:
        """Return the loss that `measure` adds to a future, nats per token; None if not measured."""
        return self._ends.get((sequence, steps, draw, measure))

    def add_end(
        self, sequence: InterventionSequence, steps: int, draw: int, measure: Measure, loss: float
    ) -> None:
        """Keep the loss that `measure` adds to a future, nats per token."""
        self._ends[sequence, steps, draw, measure] = loss
