"""A plan in the making: every planner looks at futures through this, so that all of them keep the same promises.

    draft = PlanBuilder(problem, "mine") scores = draft.forecast([(Intervention(lr_scale=0.9),)])
    # by the model: NaN where there is no score scores = draft.run([(Intervention(lr_scale=0.9),)],
    50)      # for real, beside a control on the same batches return draft.plan()

It keeps the budget, the masks and the pruner, catches what the model and the executor raise, and
always ranks doing nothing. Sequences that differ only by doing nothing at their end are one and the
same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from trainenv.planners.support.budget_account import Account, needed, told
from trainenv.planners.support.score import Score
from trainenv.planners.support.sequences import NOTHING, Legality, Sequenced, canonical
from trainenv.types import (
    Candidate,
    Cost,
    Criterion,
    Dropped,
    Executor,
    Forecast,
    Intervention,
    Outcome,
    Plan,
    PlanningProblem,
    UserError,
    WorldModel,
)

_BLOCK = 32  # entries a forecast where seconds are limited: the clock is looked at between


class PlanBuilder(Account):
    """What one call of `Planner.plan` has seen and spent so far.

    Args:
        problem: what is asked.
        planner: name of who plans.
        criterion: what scores are of, for a planner that has its own idea; None for the problem's.
        clock: seconds, rising.

    Attributes:
        criterion: the problem's, or the default.
        legality: what the masks allow.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        planner: str,
        *,
        criterion: Criterion | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(problem.budget, clock)
        self.problem = problem
        self.planner = planner
        self.criterion: Criterion = criterion or problem.criterion or Score()
        self.legality = Legality(problem)
        self._scores: dict[Sequenced, float] = {}
        self._forecasts: dict[Sequenced, Forecast] = {}
        self._outcomes: dict[Sequenced, list[Outcome]] = {}
        self._measured: dict[tuple[Sequenced, int, int], Outcome] = {}
        self._dropped: dict[Sequenced, str] = {}

    # ── what is there ─────────────────────────────────────────────────────────────────────────────

    @property
    def model(self) -> WorldModel:
        """The problem's model; a `UserError` where there is none."""
        return needed(self.planner, "a model", self.problem.model)

    @property
    def executor(self) -> Executor:
        """The problem's executor; a `UserError` where there is none."""
        return needed(self.planner, "an executor", self.problem.executor)

    @property
    def proposals(self) -> list[Sequenced]:
        """What the problem proposes, without what is illegal, which is recorded as dropped."""
        return [
            sequence
            for sequence in map(canonical, self.problem.proposals)
            if self.admitted(sequence)
        ]

    # ── what the model says ───────────────────────────────────────────────────────────────────────

    def forecast(self, sequences: Iterable[Sequence[Intervention]]) -> list[float]:
        """The scores that the model gives reason to expect, in order; NaN for what was dropped, refused or failed.

        Doing nothing is forecast before anything else. What was forecast before is free.
        """
        wanted = [canonical(sequence) for sequence in sequences]
        model = self.model
        fresh = [
            one
            for one in dict.fromkeys(wanted)
            if one not in self._forecasts and one != NOTHING and self.admitted(one)
        ]
        fresh = ([] if NOTHING in self._forecasts else [NOTHING]) + self.kept(fresh)
        size = len(fresh) if self.problem.budget.seconds is None else _BLOCK
        while fresh and not self.over:
            block = fresh[: int(min(size, self.futures_left))]
            if not block:
                self.exhausted = True
                break
            self.spend(futures=len(block))
            self._forecast(model, block)
            fresh = fresh[len(block) :]
        return [self._expected(one) for one in wanted]

    def forecast_of(self, sequence: Sequence[Intervention]) -> Forecast | None:
        """What the model said of a sequence, None where it was not asked or said nothing sound."""
        return self._forecasts.get(canonical(sequence))

    def _forecast(self, model: WorldModel, block: list[Sequenced]) -> None:
        try:
            found = model.forecast(
                self.problem.history, [one if len(one) > 1 else one[0] for one in block]
            )
            if len(found) != len(block):
                raise UserError(f"expected {len(block)} forecasts, found {len(found)}")
            scores = [self.criterion.expected(forecast) for forecast in found]
        except Exception as error:
            self.fail(f"the model failed: {told(error)}")
            return
        if block[0] == NOTHING and not math.isfinite(
            scores[0]
        ):  # then the other differences to it are worth nothing
            self.fail(f"the model failed: its forecast of doing nothing has the score {scores[0]}")
            return
        for one, forecast, score in zip(block, found, scores, strict=True):
            if math.isfinite(score):
                self._forecasts[one], self._scores[one] = forecast, score
            else:
                self._dropped[one] = f"its forecast has the score {score}"

    def _expected(self, sequence: Sequenced) -> float:
        forecast = self._forecasts.get(sequence)
        return math.nan if forecast is None else self.criterion.expected(forecast)

    def kept(self, sequences: list[Sequenced]) -> list[Sequenced]:
        """Those that the pruner does not drop."""
        if self.problem.pruner is None or not sequences or self.over or self.futures_left <= 0:
            return sequences
        try:
            reasons = list(self.problem.pruner.hopeless(self.problem.history, sequences))
            if len(reasons) != len(sequences):
                raise UserError(f"expected {len(sequences)} reasons, found {len(reasons)}")
        except Exception as error:
            self.fail(f"the pruner failed: {told(error)}")
            return []
        self._dropped |= {
            one: reason for one, reason in zip(sequences, reasons, strict=True) if reason
        }
        return [one for one, reason in zip(sequences, reasons, strict=True) if not reason]

    # ── what is run for real ──────────────────────────────────────────────────────────────────────

    def run(
        self, sequences: Iterable[Sequence[Intervention]], steps: int, *, draw: int = 0
    ) -> list[float]:
        """Run as many of the sequences as the budget allows, the first ones; their measured scores, NaN where there is none.

        Doing nothing is run with them, and counted, where it was not before for as many steps and
        this draw.
        """
        wanted = [canonical(sequence) for sequence in sequences]
        executor = self.executor
        fresh = self._fresh(wanted, steps, draw)
        if fresh and not self.over:
            self._run(executor, fresh, steps, draw)
        return [self.measured(one, steps, draw=draw) for one in wanted]

    def measured(self, sequence: Sequence[Intervention], steps: int, *, draw: int = 0) -> float:
        """The score that `run` measured of a sequence, NaN where it did not."""
        outcome, control = (self.outcome(one, steps, draw=draw) for one in (sequence, NOTHING))
        return (
            math.nan
            if outcome is None or control is None
            else self.criterion.measured(outcome, control)
        )

    def outcome(
        self, sequence: Sequence[Intervention], steps: int, *, draw: int = 0
    ) -> Outcome | None:
        """What `run` measured of a sequence, None where it was not run or failed."""
        found = self._measured.get((canonical(sequence), steps, draw))
        return None if found is None or found.error else found

    def price(
        self, sequences: Iterable[Sequence[Intervention]], steps: int, *, draw: int = 0
    ) -> Cost | None:
        """What `run` would spend at most on all of these; None where the executor fails to say."""
        executor = self.executor
        fresh = self._fresh(map(canonical, sequences), steps, draw)
        try:
            return executor.cost(fresh, steps, measure=self.criterion.measure, draw=draw)
        except Exception as error:
            self.fail(f"the executor failed: {told(error)}")
            return None

    def affords(
        self, sequences: Iterable[Sequence[Intervention]], steps: int, *, draw: int = 0
    ) -> bool:
        """Whether all of these can be run within the budget; noted if not."""
        price = self.price(sequences, steps, draw=draw)
        self.exhausted = self.exhausted or (price is not None and not self.covers(price))
        return price is not None and self.covers(price)

    def _fresh(self, sequences: Iterable[Sequenced], steps: int, draw: int) -> list[Sequenced]:
        """The control and the sequences, without what is known or illegal."""
        unknown = (
            one
            for one in dict.fromkeys([NOTHING, *sequences])
            if (one, steps, draw) not in self._measured
        )
        return [one for one in unknown if one == NOTHING or self.admitted(one)]

    def _run(self, executor: Executor, fresh: list[Sequenced], steps: int, draw: int) -> None:
        measure = self.criterion.measure
        try:
            block = self.affordable(
                fresh, lambda some: executor.cost(some, steps, measure=measure, draw=draw)
            )
            if not block or (
                block == [NOTHING] and len(fresh) > 1
            ):  # a control alone teaches nothing
                return
            found = list(executor.run(block, steps, measure=measure, draw=draw))
        except Exception as error:
            self.fail(f"the executor failed: {told(error)}")
            return
        for one, outcome in zip(block, found, strict=False):
            if not isinstance(outcome, Outcome) or not outcome.steps >= 0 or not outcome.flops >= 0:
                self.fail(
                    f"the executor failed: expected an outcome with steps and FLOPs of at least 0, found {outcome!r}"
                )
                return
            self.spend(steps=outcome.steps, flops=outcome.flops)
            self._outcomes.setdefault(one, []).append(outcome)
            self._measured[one, steps, draw] = outcome
        if len(found) != len(block):
            self.fail(f"the executor failed: expected {len(block)} outcomes, found {len(found)}")
        for one in block[: len(found)]:
            self._settle(one, steps, draw)

    def _settle(self, one: Sequenced, steps: int, draw: int) -> None:
        score = self.measured(one, steps, draw=draw)
        if math.isfinite(score):
            self._scores[one] = score
            return
        why = (
            self._measured[one, steps, draw].error
            or f"no {self.criterion.measure} loss was measured"
        )
        if one == NOTHING:
            self.fail(f"the control that does nothing failed: {why}")
        elif one not in self._scores:
            self._dropped[one] = why

    # ── the plan ──────────────────────────────────────────────────────────────────────────────────

    def score(self, sequence: Sequence[Intervention], value: float) -> None:
        """Rank a sequence by the planner's own number instead of what was last forecast or measured. Illegal ones are dropped."""
        one = canonical(sequence)
        if one != NOTHING and not self.admitted(one):
            return
        if math.isfinite(value):
            self._scores[one] = float(value)
        else:
            self._dropped[one] = f"its score is {value}"

    def rank(self, ranked: Sequence[tuple[Sequence[Intervention], float]]) -> None:
        """Rank sequences in the order given, and after them all others but doing nothing, which stays where its score puts it.

        A score that is better than one before it is raised to that one: what was given up on early,
        after a shorter look, is not to come before what outlived it.
        """
        level = -math.inf
        first = [(canonical(sequence), score) for sequence, score in ranked]
        named = {NOTHING, *(one for one, _ in first)}
        others = sorted(
            ((one, score) for one, score in self._scores.items() if one not in named),
            key=lambda pair: pair[1],
        )
        for one, score in [*first, *others]:
            level = max(level, score)
            self._scores.pop(one, None)  # of equals the first one set comes first
            self.score(one, level)

    def drop(self, sequence: Sequence[Intervention], reason: str) -> None:
        """Take a sequence out of the ranking; its outcomes stay on record. Doing nothing stays."""
        one = canonical(sequence)
        if one != NOTHING:
            self._scores.pop(one, None)
            self._dropped[one] = reason

    def plan(self, *, complete: bool = True, memory: object = None) -> Plan:
        """The plan: what has a score, best first; of equals doing nothing first, then what was looked at first."""
        self._scores.setdefault(NOTHING, 0.0)
        ranked = sorted(self._scores.items(), key=lambda item: (item[1], item[0] != NOTHING))
        unscored = [
            one for one in self._outcomes if one not in self._scores and one not in self._dropped
        ]
        dropped = self._dropped | dict.fromkeys(unscored, "it was run, but has no score")
        return Plan(
            planner=self.planner,
            candidates=tuple(
                Candidate(
                    interventions=one,
                    score=score,
                    forecast=self._forecasts.get(one),
                    outcomes=tuple(self._outcomes.get(one, ())),
                )
                for one, score in ranked
            ),
            dropped=tuple(
                Dropped(
                    interventions=one, reason=reason, outcomes=tuple(self._outcomes.get(one, ()))
                )
                for one, reason in dropped.items()
                if one not in self._scores
            ),
            cost=self.spent + Cost(seconds=self.seconds),
            faults=tuple(self.faults),
            complete=complete and not self.faults and not self.exhausted,
            memory=memory,
        )

    def admitted(self, sequence: Sequenced) -> bool:
        """Whether a sequence may be looked at; what is illegal is recorded."""
        if sequence in self._scores:
            return True
        if sequence in self._dropped:
            return False
        if problem := self.legality.objection(sequence):
            self._dropped[sequence] = problem
            return False
        return True
